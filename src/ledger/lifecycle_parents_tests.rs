//! Jobs that wait for others: what is taken, what follows when a parent ends, what a broken ledger looks like.

use super::*;
use crate::ledger::graph::Fate;

/// Ids, each with its parents.
type Batch<'a> = &'a [(&'a str, &'a [&'a str])];

fn bench() -> Bench {
    let mut bench = Bench::new();
    bench.limits = Some(Limits { jobs_open_max: 100, manifest_bytes_max: 100_000 });
    bench
}

fn text(id: &str, more: &str) -> String {
    format!(r#"{{"job_id":"{id}","image_hash":"busybox","command":["true"]{more}}}"#)
}

fn after(parents: &[&str]) -> String {
    format!(r#","depends_on":{parents:?}"#)
}

impl Bench {
    fn all(&mut self, batch: Batch<'_>) -> Result<Vec<State>, Rejection> {
        let batch = batch.iter().map(|(id, parents)| {
            let more = if parents.is_empty() { String::new() } else { after(parents) };
            crate::manifest::parse(text(id, &more).as_bytes()).unwrap()
        });
        self.run(Command::SubmitAll(batch.collect()))
    }

    fn chain(&mut self, ids: &[&str]) {
        for (at, id) in ids.iter().enumerate() {
            let more = if at > 0 { after(&[ids[at - 1]]) } else { String::new() };
            assert_eq!(self.submit(id, &more), Ok(vec![State::Received]));
        }
    }

    fn of(&self, id: &str) -> &Job {
        self.ledger.job(id).unwrap()
    }

    /// A command that [`commands`] knows, for this job.
    fn go(&mut self, id: &str, names: &str) -> Result<Vec<State>, Rejection> {
        let mut states = Vec::new();
        for name in names.split(", ") {
            let (job_id, job): (Arc<str>, _) = (id.into(), self.of(id));
            let (attempt, seq) = (job.attempt, job.seq);
            let outcome = Outcome::Failed { reason: "exit".into(), message: "1".into() };
            let crashed = Outcome::Crashed { cause: "oom".into() };
            let command = match name {
                "schedule" => Command::Schedule(job_id, seq, scheduled()),
                "start" => Command::Start(job_id, seq),
                "complete" => Command::End(job_id, attempt, Outcome::Completed, ending(0)),
                "fail" => Command::End(job_id, attempt, outcome, ending(3)),
                "oom" => Command::End(job_id, attempt, crashed, ending(137)),
                "seal" => Command::Seal(job_id, attempt, sealed()),
                "cancel" => Command::Stop(job_id, ask("cancel")),
                "by dependency" => Command::FailByDependency(job_id, seq),
                "retrigger" => {
                    let canonical = self.bytes.iter().find_map(|bytes| match Stored::parse(bytes).unwrap().event {
                        Event { detail: Detail::Received(received), subject: Some(subject), .. } => {
                            (*subject.job_id == *id).then_some(received.manifest)
                        }
                        _ => None,
                    });
                    Command::Retrigger(job_id, "127.0.0.1".into(), canonical.unwrap())
                }
                other => panic!("{other}"),
            };
            states.extend(self.run(command)?);
        }
        Ok(states)
    }

    fn sealed(&mut self, id: &str) {
        self.go(id, "schedule, start, complete, seal").unwrap();
    }

    /// Message and ancestor of the last event.
    fn last_failure(&self) -> (String, Option<String>) {
        match Stored::parse(self.bytes.last().unwrap()).unwrap().event.detail {
            Detail::Failed(Failed { reason, message, ancestor, .. }) => {
                assert_eq!(reason, "dependency");
                (message, ancestor)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Gives apply an event that nobody decided.
    fn force(&mut self, id: &str, detail: Detail) -> Result<(), String> {
        let subject = Some(Subject { job_id: id.into(), attempt: self.ledger.job(id).map_or(0, |job| job.attempt) });
        let mut bytes = Vec::new();
        let event = Event { time: Time(self.clock), subject, detail };
        event.write(self.bytes.len() as u64 + 1, &Hash::ZERO, &mut bytes);
        Fact::parse(&bytes).and_then(|fact| self.ledger.apply(&fact, &bytes)).map(drop)
    }

    fn check_recovery(&self) {
        let mut recovered = Ledger::default();
        for bytes in &self.bytes {
            recovered.apply(&Fact::parse(bytes).unwrap(), bytes).unwrap();
        }
        assert_eq!(recovered.jobs(), self.ledger.jobs(), "recovery sees what was decided live");
    }
}

#[test]
fn a_job_is_scheduled_once_all_its_parents_are_sealed() {
    let mut bench = bench();
    bench.submit("a", "").unwrap();
    bench.submit("b", "").unwrap();
    bench.submit("c", &after(&["b", "a"])).unwrap();
    assert_eq!(bench.of("c").parents(), ["a".into(), "b".into()], "sorted");
    assert!(Arc::ptr_eq(&bench.of("a").job_id, &bench.of("c").parents()[0]), "one copy of each id");
    assert!(bench.of("a").lineage.is_none());
    for id in ["a", "b"] {
        let rejection = bench.go("c", "schedule").unwrap_err();
        assert!(rejection.status == 409 && rejection.message.contains(&format!("{id:?}")), "{rejection}");
        let error = bench.force("c", Detail::Scheduled(scheduled())).unwrap_err();
        assert!(error.contains("before its parent"), "{error}");
        assert!(bench.of("c").waits_for_parents());
        bench.sealed(id);
    }
    bench.sealed("c");
    assert_eq!(bench.of("c").fate(), Fate::Sealed);
    bench.check_recovery();
}

#[test]
fn mounted_artifacts_make_a_parent_too() {
    let mut bench = bench();
    bench.submit("a", "").unwrap();
    bench.submit("b", "").unwrap();
    let more = r#","mount_spec":["job:b:/job/in/b","/d/job:/job/workdir","job:a:/job/in/a"],"depends_on":["a"]"#;
    bench.submit("c", more).unwrap();
    assert_eq!(bench.of("c").parents(), ["a".into(), "b".into()]);
    let rejection = bench.submit("d", r#","mount_spec":"job:x:/job/in/x""#).unwrap_err();
    assert_eq!((rejection.code, rejection.field.as_deref()), ("unknown_dependency", Some("mount_spec")));
    bench.submit("e", r#","mount_spec":["/d/job:/job/workdir"],"env":{"A":"\"job:x:/y"}"#).unwrap();
    assert!(bench.of("e").lineage.is_none());
    bench.check_recovery();
}

#[test]
fn unknown_parents_are_refused_by_name_and_break_a_ledger() {
    let mut bench = bench();
    bench.submit("a", "").unwrap();
    let rejection = bench.submit("b", &after(&["a", "y", "x"])).unwrap_err();
    assert_eq!((rejection.status, rejection.code), (400, "unknown_dependency"));
    assert_eq!(rejection.field.as_deref(), Some("depends_on"));
    assert!(rejection.message.contains(r#""x", "y""#) && rejection.message.contains("submit_jobs"), "{rejection}");
    let parsed = crate::manifest::parse(text("b", &after(&["a", "x"])).as_bytes()).unwrap();
    let manifest = RawValue::from_string(parsed.canonical).unwrap();
    let received = crate::ledger::event::Received { manifest, manifest_hash: parsed.hash };
    let error = bench.force("b", Detail::Received(received)).unwrap_err();
    assert!(error.contains(r#"parent "x" is unknown"#), "{error}");
    assert!(bench.ledger.job("b").is_none());
}

#[test]
fn a_chain_fails_with_the_name_of_whoever_began_it() {
    let mut bench = bench();
    bench.chain(&["a", "b", "c"]);
    assert_eq!(bench.go("b", "by dependency").unwrap_err().code, "wrong_state", "its parent has not ended");
    bench.go("a", "schedule, start, fail").unwrap();
    assert_eq!(bench.go("c", "by dependency").unwrap_err().code, "wrong_state", "its own parent has not");
    assert_eq!(bench.go("b", "by dependency"), Ok(vec![State::Failed]));
    let (message, ancestor) = bench.last_failure();
    assert_eq!((message.as_str(), ancestor.as_deref()), (r#"parent "a" ended FAILED (exit, exit code 3)"#, Some("a")));
    assert_eq!(bench.go("c", "by dependency"), Ok(vec![State::Failed]));
    let (message, ancestor) = bench.last_failure();
    assert_eq!(message, r#"ancestor "a" ended FAILED (exit, exit code 3); through parent "b""#);
    assert_eq!(ancestor.as_deref(), Some("a"));
    assert_eq!(
        (bench.of("c").reason.as_deref(), bench.of("c").ancestor().map(|a| &**a)),
        (Some("dependency"), Some("a"))
    );
    assert_eq!(bench.of("a").ancestor(), None);
    // Submitted late, it is accepted, and fails as if it had come in time.
    assert_eq!(bench.submit("d", &after(&["c"])), Ok(vec![State::Received]));
    assert_eq!(bench.go("d", "by dependency"), Ok(vec![State::Failed]));
    assert_eq!(bench.last_failure().1.as_deref(), Some("a"));
    bench.check_recovery();
}

#[test]
fn a_cancelled_parent_fails_its_children_though_another_goes_on() {
    let mut bench = bench();
    bench.submit("a", "").unwrap();
    bench.submit("b", "").unwrap();
    bench.submit("c", &after(&["a", "b"])).unwrap();
    bench.go("b", "cancel").unwrap();
    bench.go("c", "by dependency").unwrap();
    assert_eq!(bench.last_failure(), (r#"parent "b" ended CANCELLED"#.into(), Some("b".into())));
    // Whoever was cancelled while it waited began it itself.
    bench.submit("d", &after(&["a"])).unwrap();
    bench.submit("e", &after(&["d"])).unwrap();
    bench.go("d", "cancel").unwrap();
    bench.go("e", "by dependency").unwrap();
    assert_eq!(bench.last_failure().1.as_deref(), Some("d"));
    let late = bench.go("e", "by dependency").unwrap_err();
    assert_eq!(late.code, "wrong_state", "once is enough");
    bench.check_recovery();
}

#[test]
fn what_was_asked_for_before_an_ancestor_was_retriggered_is_refused() {
    let mut bench = bench();
    bench.chain(&["a", "b"]);
    bench.go("a", "schedule, start, oom").unwrap();
    bench.go("a", "retrigger").unwrap();
    assert_eq!(bench.go("b", "by dependency").unwrap_err().code, "wrong_state");
    let late = Command::FailByDependency("b".into(), bench.of("b").seq);
    bench.go("b", "cancel").unwrap();
    assert_eq!(bench.run(late).unwrap_err().code, "superseded");
}

#[test]
fn descendants_are_retriggered_behind_their_ancestor() {
    let mut bench = bench();
    bench.chain(&["a", "b", "c"]);
    bench.go("a", "schedule, start, oom").unwrap();
    bench.go("b", "by dependency").unwrap();
    bench.go("c", "by dependency").unwrap();
    for id in ["b", "c"] {
        let rejection = bench.go(id, "retrigger").unwrap_err();
        assert_eq!((rejection.status, rejection.code), (409, "dependency"));
        assert!(rejection.message.contains(r#"retrigger "a" first"#), "{rejection}");
    }
    bench.go("a", "retrigger").unwrap();
    let rejection = bench.go("c", "retrigger").unwrap_err();
    assert!(rejection.message.contains(r#""a" is RETRIGGERED by now; through parent "b""#), "{rejection}");
    assert_eq!(bench.go("b", "retrigger, retrigger"), Ok(vec![State::Retriggered]));
    assert_eq!(bench.of("b").ancestor(), None, "that is over");
    assert!(bench.of("b").waits_for_parents());
    assert_eq!(bench.go("b", "schedule").unwrap_err().code, "wrong_state");
    bench.go("a", "start, complete, seal").unwrap();
    let rejection = bench.go("c", "retrigger");
    assert_eq!(rejection, Ok(vec![State::Retriggered]), "its parent has not ended");
    bench.sealed("b");
    bench.sealed("c");
    assert_eq!(bench.of("c").attempt, 1);
    bench.check_recovery();
}

#[test]
fn where_the_ancestor_is_sealed_by_now_the_parent_is_to_be_retriggered() {
    let mut bench = bench();
    bench.chain(&["a", "b", "c"]);
    bench.go("a", "cancel").unwrap();
    bench.go("b", "by dependency").unwrap();
    bench.go("c", "by dependency").unwrap();
    bench.go("a", "retrigger").unwrap();
    bench.sealed("a");
    let rejection = bench.go("c", "retrigger").unwrap_err();
    assert!(rejection.message.contains(r#"retrigger "b" first"#), "{rejection}");
    bench.go("b", "retrigger, cancel").unwrap();
    bench.submit("d", &after(&["b"])).unwrap();
    bench.go("d", "by dependency").unwrap();
    assert_eq!(bench.last_failure().1.as_deref(), Some("b"), "its second end is its own");
}

#[test]
fn a_cancelled_job_that_never_was_scheduled_waits_again() {
    let mut bench = bench();
    bench.chain(&["a", "b"]);
    assert_eq!(bench.go("b", "cancel, retrigger"), Ok(vec![State::Cancelled, State::Retriggered]));
    assert!(bench.of("b").waits_for_parents());
    assert!(bench.force("b", Detail::Scheduled(scheduled())).is_err());
    bench.go("b", "cancel").unwrap();
    bench.go("a", "schedule, start, fail").unwrap();
    assert_eq!(bench.go("b", "retrigger").unwrap_err().code, "dependency");
    bench.submit("c", "").unwrap();
    bench.sealed("c");
    bench.submit("d", &after(&["c"])).unwrap();
    bench.go("d", "schedule, cancel, retrigger").unwrap();
    assert!(!bench.of("d").waits_for_parents(), "its parents are sealed for ever");
    bench.go("d", "start").unwrap();
    bench.check_recovery();
}

#[test]
fn an_end_by_dependency_that_no_parent_bears_out_breaks_a_ledger() {
    let failed = |ancestor: Option<&str>| {
        let ancestor = ancestor.map(str::to_owned);
        Detail::Failed(Failed { ancestor, ..Failed::new("dependency", "", Ending::default()) })
    };
    let mut bench = bench();
    bench.chain(&["a", "b"]);
    bench.submit("x", "").unwrap();
    bench.go("x", "schedule, start, fail").unwrap();
    for (id, ancestor, says) in [
        ("b", Some("a"), "because of \"a\""),
        ("b", Some("x"), "because of \"x\""),
        ("b", Some("nobody"), "because of \"nobody\""),
        ("b", None, "without an ancestor"),
        ("a", Some("x"), "because of \"x\""),
    ] {
        let error = bench.force(id, failed(ancestor)).unwrap_err();
        assert!(error.contains(says), "{id} {ancestor:?}: {error}");
    }
    let other = Failed { ancestor: Some("a".into()), ..Failed::new("image", "", Ending::default()) };
    assert!(bench.force("b", Detail::Failed(other)).unwrap_err().contains("another reason"));
    bench.go("a", "cancel").unwrap();
    assert!(bench.force("b", failed(Some("x"))).is_err());
    assert_eq!(bench.force("b", failed(Some("a"))), Ok(()));
}

#[test]
fn a_batch_is_taken_parents_first_and_otherwise_as_it_was_given() {
    let mut bench = bench();
    bench.submit("known", "").unwrap();
    let batch: [(&str, &[&str]); 5] = [("d", &["b", "c"]), ("b", &["a"]), ("z", &[]), ("a", &["known"]), ("c", &["a"])];
    assert_eq!(bench.all(&batch), Ok(vec![State::Received; 5]));
    let order: Vec<String> = bench.ledger.jobs().iter().map(|job| job.job_id.to_string()).collect();
    assert_eq!(order, ["known", "z", "a", "b", "c", "d"]);
    assert_eq!(bench.all(&batch), Ok(Vec::new()), "the same again");
    assert_eq!(bench.all(&[("a", &["known"]), ("e", &["d"])]), Ok(vec![State::Received]));
    bench.check_recovery();
}

#[test]
fn a_batch_is_taken_whole_or_not_at_all() {
    let mut bench = bench();
    bench.chain(&["p", "q"]);
    let before = bench.bytes.len();
    let cases: [(Batch<'_>, u16, &str, &str, &str); 7] = [
        (&[("a", &[]), ("b", &["a", "x"])], 400, "unknown_dependency", "jobs[1].depends_on", "\"x\""),
        (&[("a", &[]), ("b", &[]), ("a", &[])], 400, "duplicate_job", "jobs[2].job_id", "jobs[0]"),
        (
            &[("z", &[]), ("c", &["b"]), ("a", &["c"]), ("b", &["a"])],
            400,
            "dependency_cycle",
            "jobs[1].depends_on",
            "c → a → b → c",
        ),
        (&[("a", &["b"]), ("b", &["a"])], 400, "dependency_cycle", "jobs[0].depends_on", "a → b → a"),
        (&[("a", &[]), ("q", &[])], 409, "job_exists", "jobs[1].job_id", "another manifest"),
        (&[("a", &["q"]), ("p", &["a"])], 400, "dependency_cycle", "jobs[1].depends_on", "p → q → a → p"),
        (&[("p", &["q"])], 400, "dependency_cycle", "jobs[0].depends_on", "p → q → p"),
    ];
    for (batch, status, code, field, says) in cases {
        let rejection = bench.all(batch).unwrap_err();
        let told = (rejection.status, rejection.code, rejection.field.as_deref());
        assert_eq!(told, (status, code, Some(field)), "{rejection}");
        assert!(rejection.message.contains(says), "{rejection}");
    }
    bench.limits = Some(Limits { jobs_open_max: 4, manifest_bytes_max: 100_000 });
    let rejection = bench.all(&[("a", &[]), ("b", &[]), ("c", &[])]).unwrap_err();
    assert_eq!((rejection.status, rejection.code), (429, "queue_full"));
    assert_eq!(bench.bytes.len(), before, "nothing was written");
    assert_eq!(bench.all(&[("a", &[]), ("b", &[]), ("q", &["p"])]), Ok(vec![State::Received; 2]), "two are left");
}

#[test]
fn a_single_manifest_that_closes_a_circle_is_told_of_it() {
    let mut bench = bench();
    bench.chain(&["a", "b", "c"]);
    let rejection = bench.submit("a", &after(&["c"])).unwrap_err();
    assert_eq!((rejection.status, rejection.code), (400, "dependency_cycle"));
    assert!(rejection.message.contains("a → b → c → a"), "{rejection}");
    assert_eq!(rejection.field.as_deref(), Some("depends_on"));
    assert_eq!(bench.submit("b", r#","timeout_s":5"#).unwrap_err().code, "job_exists");
    assert_eq!(bench.submit("c", &after(&["a"])).unwrap_err().code, "job_exists", "which leads back to nobody");
}

#[test]
fn what_one_append_cannot_hold_is_refused() {
    let mut bench = bench();
    bench.limits = Some(Limits { jobs_open_max: 1_000_000, manifest_bytes_max: usize::MAX });
    let long = "x".repeat(100_000);
    let manifest = |id: usize| text(&id.to_string(), &format!(r#","env":{{"A":"{long}"}}"#));
    let batch = |count| (0..count).map(|id| crate::manifest::parse(manifest(id).as_bytes()).unwrap()).collect();
    let rejection = bench.run(Command::SubmitAll(batch(21))).unwrap_err();
    assert_eq!((rejection.status, rejection.code, rejection.field.as_deref()), (400, "too_large", Some("jobs")));
    assert_eq!(bench.run(Command::SubmitAll(batch(20))).unwrap().len(), 20);
    let written: usize = bench.bytes.iter().map(Vec::len).sum();
    assert!(written <= BATCH_BYTES_MAX);
}

#[test]
fn a_job_is_small() {
    // A ledger holds millions of them.
    assert!(size_of::<Job>() <= 240, "{}", size_of::<Job>());
}
