//! Jobs that hang on others: `job:` mounts, reproductions, and what failed because of a parent.

use std::fs;

use hackbrain::canonical::to_canonical;
use hackbrain::hash::Hash;
use serde_json::{Value, json};

use super::forgery::{Events, json};
use super::{Case, Verdict, World, at_time_of, edit_json, flip};

/// Of the child's mounts: the parent's artifacts.
const SHOWN: usize = 0;

/// Where a reproduction's copy of the child's second mount lies, and what may lie there.
fn copied(w: &World, name: &str) -> std::path::PathBuf {
    w.own(&format!("scratch/{}/1", w.jobs.again)).join(name)
}

/// `input_hash` and `execution_hash` of a SCHEDULED with these mounts, by docs/evidence.md.
fn hashes(manifest: &Value, image_id: &Value, mounts: &Value) -> [Value; 2] {
    let given = mounts.as_array().unwrap().iter().map(|mount| {
        let tree = if mount.get("artifacts_of").is_some() { "artifacts" } else { "tree" };
        json!({ "container": mount["container"], "mode": mount["mode"], tree: mount["tree"] })
    });
    let given: Value = given.collect();
    let env = json!({
        "HOME": "/tmp", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "SOURCE_DATE_EPOCH": "0", "TZ": "UTC",
    });
    let whole = json!({
        "command": manifest["command"], "env": env, "image_id": image_id, "mounts": given, "network": "none",
        "resources": {},
    });
    [given, whole].map(|value| json!(Hash::of(&to_canonical(&value).unwrap())))
}

/// The child's SCHEDULED with other mounts, and hashes that fit.
fn rescheduled(w: &World, change: impl FnOnce(&mut Vec<Value>)) -> Events {
    let job = &*w.jobs.child;
    let received = json(&w.events[w.seq_of(job, "RECEIVED", 0) as usize - 1]);
    let of = |detail: &Value| hashes(&received["detail"]["manifest"], &detail["image_id"], &detail["mounts"]);
    w.edited_detail(w.seq_of(job, "SCHEDULED", 0), |detail| {
        assert_eq!(of(detail), ["input_hash", "execution_hash"].map(|name| detail[name].clone()));
        change(detail["mounts"].as_array_mut().unwrap());
        let [input, execution] = of(detail);
        detail["input_hash"] = input;
        detail["execution_hash"] = execution;
    })
}

/// Both of the child's files do not fit such a SCHEDULED either.
fn rescheduled_faults(w: &World, events: &[String]) -> Verdict {
    let job = &*w.jobs.child;
    let [seal, inputs] = ["seals", "inputs"].map(|dir| format!("{dir}/{job}.json"));
    let faults = [("execution_hash", job, "-"), ("seal_changed", job, &*seal), ("inputs_changed", job, &*inputs)];
    Verdict { head: w.forged(events).head, ..w.faults(&faults) }
}

/// The child's inputs file, with `artifacts_of` changed.
fn inputs_changed(w: &World, change: impl FnOnce(&mut Value)) -> Verdict {
    let path = format!("inputs/{}.json", w.jobs.child);
    edit_json(&w.own(&path), |inputs| change(&mut inputs["mounts"][SHOWN]));
    w.faults(&[("inputs_changed", &w.jobs.child, &path)])
}

/// The events of these states of `job` come before that of this seq, at the time of the one before it.
fn moved(w: &World, job: &str, states: &[&str], before: u64) -> Events {
    let mut events = w.events.clone();
    let from = states.iter().map(|state| w.seq_of(job, state, 0) as usize - 1);
    let moved: Events = from.rev().map(|at| events.remove(at)).collect();
    let at = before as usize - 1;
    for event in moved {
        events.insert(at, at_time_of(&event, &w.events[at - 1]));
    }
    events
}

/// What FAILED of `job` tells, changed.
fn failure(w: &World, job: &str, change: impl FnOnce(&mut Value)) -> (Events, u64) {
    let seq = w.seq_of(job, "FAILED", 0);
    (w.edited_detail(seq, change), seq)
}

/// FAILED of `job` names another ancestor, which no rule allows.
fn blames(w: &World, job: &str, ancestor: &str) -> Verdict {
    let (events, seq) = failure(w, job, |detail| detail["ancestor"] = ancestor.into());
    w.refused(&events, seq)
}

/// A job with a parent's artifacts, its reproduction, and jobs whose parents failed.
pub const PARENTS: &[Case] = &[
    ("an artifact in a reproduction's copy", |w| {
        flip(&copied(w, "out"), 0);
        w.faults(&[("artifact_changed", &w.jobs.again, "/job/workdir/out")])
    }),
    ("an artifact in a reproduction's copy is gone", |w| {
        fs::remove_file(copied(w, "out")).unwrap();
        w.faults(&[("artifact_missing", &w.jobs.again, "/job/workdir/out")])
    }),
    ("an extra file in a reproduction's copy", |w| {
        fs::write(copied(w, "extra"), "").unwrap();
        w.faults(&[("artifact_extra", &w.jobs.again, "/job/workdir/extra")])
    }),
    ("an input in a reproduction's copy, and what lies beside the copy", |w| {
        fs::write(copied(w, "in"), "other").unwrap();
        fs::write(w.own(&format!("scratch/{}/beside", w.jobs.again)), "").unwrap();
        let shown = w.own(&format!("scratch/{}/0", w.jobs.again));
        fs::create_dir_all(&shown).unwrap();
        fs::write(shown.join("extra"), "").unwrap();
        w.sound()
    }),
    ("the original of a reproduction", |w| {
        let dir = w.site.root().join("child");
        flip(&dir.join("out"), 0);
        fs::write(dir.join("extra"), "").unwrap();
        let job = &*w.jobs.child;
        w.faults(&[("artifact_changed", job, "/job/workdir/out"), ("artifact_extra", job, "/job/workdir/extra")])
    }),
    ("a reproduction's copy is gone", |w| {
        fs::remove_dir_all(w.own(&format!("scratch/{}", w.jobs.again))).unwrap();
        w.faults(&[("artifact_missing", &w.jobs.again, "/job/workdir/out")])
    }),
    ("files where a parent's artifacts were staged", |w| {
        for place in [&w.jobs.child, "nobody"] {
            let dir = w.own(&format!("staged/{place}/{SHOWN}"));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("extra"), "").unwrap();
        }
        w.sound()
    }),
    ("a parent's artifact", |w| {
        flip(&w.own(&format!("scratch/{}/d/p", w.jobs.parent)), 0);
        w.faults(&[("artifact_changed", &w.jobs.parent, "/job/workdir/d/p")])
    }),
    ("a parent's artifacts_root in SCHEDULED, and its hashes fit", |w| {
        let events = rescheduled(w, |mounts| mounts[SHOWN]["tree"] = json!(Hash::of(b"other")));
        rescheduled_faults(w, &events)
    }),
    ("a parent's artifacts_root in SCHEDULED, and hashes, inputs and seal fit", |w| {
        let (job, root) = (&*w.jobs.child, json!(Hash::of(b"other")));
        let mut events = rescheduled(w, |mounts| mounts[SHOWN]["tree"] = root.clone());
        let scheduled = json(&events[w.seq_of(job, "SCHEDULED", 0) as usize - 1]);
        inputs_changed(w, |mount| mount["artifacts_of"]["artifacts_root"] = root);
        let sealed = w.seq_of(job, "SEALED", 0) as usize - 1;
        let resealed = w.reseal(job, |seal| seal["execution_hash"] = scheduled["detail"]["execution_hash"].clone());
        events[sealed] = resealed[sealed].clone();
        Verdict { head: w.forged(&events).head, ..w.faults(&[("execution_hash", job, "-")]) }
    }),
    ("what the parent has sealed", |w| {
        // Whatever else of it fits: its children were shown something else.
        let job = &*w.jobs.parent;
        fs::write(w.own(&format!("scratch/{job}/q")), "Q\n").unwrap();
        let events = w.reseal(job, |seal| {
            super::artifact(seal, "/job/workdir/q")["sha256"] = json!(Hash::of(b"Q\n"));
        });
        let children = [("execution_hash", &*w.jobs.child, "-"), ("execution_hash", &*w.jobs.again, "-")];
        Verdict { head: w.forged(&events).head, ..w.faults(&children) }
    }),
    ("artifacts_of names another job with other artifacts, and the hashes fit", |w| {
        let other = json(&w.events[w.seq_of(&w.jobs.scratch, "SEALED", 0) as usize - 1]);
        let events = rescheduled(w, |mounts| {
            mounts[SHOWN]["artifacts_of"] = w.jobs.scratch.clone().into();
            mounts[SHOWN]["tree"] = other["detail"]["artifacts_root"].clone();
        });
        rescheduled_faults(w, &events)
    }),
    ("artifacts_of names another job with the same artifacts", |w| {
        let job = &*w.jobs.child;
        let seq = w.seq_of(job, "SCHEDULED", 0);
        let events =
            w.edited_detail(seq, |detail| detail["mounts"][SHOWN]["artifacts_of"] = w.jobs.twin.clone().into());
        inputs_changed(w, |mount| mount["artifacts_of"]["job_id"] = w.jobs.twin.clone().into());
        Verdict { head: w.forged(&events).head, ..w.faults(&[("execution_hash", job, "-")]) }
    }),
    ("artifacts_of names nobody", |w| {
        let job = &*w.jobs.child;
        let seq = w.seq_of(job, "SCHEDULED", 0);
        let events = w.edited_detail(seq, |detail| detail["mounts"][SHOWN]["artifacts_of"] = "nobody".into());
        let inputs = format!("inputs/{job}.json");
        let faults = [("execution_hash", job, "-"), ("inputs_changed", job, &*inputs)];
        Verdict { head: w.forged(&events).head, ..w.faults(&faults) }
    }),
    ("a parent's artifacts become a tree, and the hashes fit", |w| {
        let events = rescheduled(w, |mounts| {
            mounts[SHOWN].as_object_mut().unwrap().remove("artifacts_of").unwrap();
        });
        rescheduled_faults(w, &events)
    }),
    ("mounts change places in SCHEDULED, and the hashes fit", |w| {
        let events = rescheduled(w, |mounts| mounts.reverse());
        rescheduled_faults(w, &events)
    }),
    ("the job in artifacts_of of the inputs", |w| {
        inputs_changed(w, |mount| mount["artifacts_of"]["job_id"] = w.jobs.twin.clone().into())
    }),
    ("artifacts_root in artifacts_of of the inputs", |w| {
        inputs_changed(w, |mount| mount["artifacts_of"]["artifacts_root"] = json!(Hash::of(b"other")))
    }),
    ("no artifacts_of in the inputs", |w| {
        inputs_changed(w, |mount| drop(mount.as_object_mut().unwrap().remove("artifacts_of").unwrap()))
    }),
    ("the tree that a child was shown", |w| {
        inputs_changed(w, |mount| mount["tree"]["root"] = json!(Hash::of(b"other")))
    }),
    ("a child is received while its parent has not ended", |w| {
        w.forged(&moved(w, &w.jobs.child, &["RECEIVED"], w.seq_of(&w.jobs.parent, "SEALED", 0)))
    }),
    ("a child is scheduled before its parent is sealed", |w| {
        let before = w.seq_of(&w.jobs.parent, "SEALED", 0);
        w.refused(&moved(w, &w.jobs.child, &["RECEIVED", "SCHEDULED"], before), before + 1)
    }),
    ("a child is received before its parent", |w| {
        let before = w.seq_of(&w.jobs.parent, "RECEIVED", 0);
        w.refused(&moved(w, &w.jobs.child, &["RECEIVED"], before), before)
    }),
    ("a job is received while its parent has not ended", |w| {
        w.forged(&moved(w, &w.jobs.orphan, &["RECEIVED"], w.seq_of(&w.jobs.blamed, "FAILED", 0)))
    }),
    ("a job fails before its parent does", |w| {
        let before = w.seq_of(&w.jobs.blamed, "FAILED", 0);
        w.refused(&moved(w, &w.jobs.orphan, &["RECEIVED", "FAILED"], before), before + 1)
    }),
    ("a job whose parent failed is scheduled", |w| {
        let (seq, scheduled) = (w.seq_of(&w.jobs.orphan, "FAILED", 0), w.seq_of(&w.jobs.scratch, "SCHEDULED", 0));
        let scheduled = w.events[scheduled as usize - 1].replacen(&w.jobs.scratch, &w.jobs.orphan, 1);
        w.refused(&w.edited(seq, |event| at_time_of(&scheduled, event)), seq)
    }),
    ("a job that is no parent is to blame", |w| blames(w, &w.jobs.orphan, &w.jobs.cancelled)),
    ("nobody is to blame", |w| blames(w, &w.jobs.orphan, "nobody")),
    ("a job is to blame itself", |w| blames(w, &w.jobs.orphan, &w.jobs.orphan)),
    ("a parent that was sealed is to blame", |w| blames(w, &w.jobs.below, &w.jobs.sealed)),
    ("a parent that failed because of another one is to blame", |w| blames(w, &w.jobs.below, &w.jobs.orphan)),
    ("no ancestor is to blame", |w| {
        let (events, seq) =
            failure(w, &w.jobs.orphan, |detail| drop(detail.as_object_mut().unwrap().remove("ancestor").unwrap()));
        w.refused(&events, seq)
    }),
    ("an ancestor is to blame for what the job did itself", |w| {
        let (events, seq) = failure(w, &w.jobs.blamed, |detail| detail["ancestor"] = w.jobs.cancelled.clone().into());
        w.refused(&events, seq)
    }),
    ("a job failed by itself, and another one because of its parent", |w| {
        let (events, _) = failure(w, &w.jobs.orphan, |detail| {
            detail["reason"] = "image".into();
            detail.as_object_mut().unwrap().remove("ancestor").unwrap();
        });
        w.refused(&events, w.seq_of(&w.jobs.below, "FAILED", 0))
    }),
];
