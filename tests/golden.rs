//! Logs of every format version that ever was, opened by this program: tests/golden/README.md has the rule.
#![allow(clippy::unwrap_used)]

mod agent;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::{Ended, Site, hackbrain, job_id, manifest};
use hackbrain::hash::Hash;
use hackbrain::sys::block::Caching;
use hackbrain::wal::frame::{BLOCK, FORMAT_VERSION, segment_name};
use hackbrain::wal::recovery::{Ending, Scan, scan};
use hackbrain::wal::storage::{Directory, Storage};
use hackbrain::wal::writer::{Options, Wal};

/// An engine that is not there.
const NO_ENGINE: (&str, &str) = ("DOCKER_HOST", "unix:///nonexistent.sock");

/// The directory of each version.
fn versions() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let versions: Vec<PathBuf> = (1..=FORMAT_VERSION).map(|version| golden.join(format!("v{version}"))).collect();
    assert!(versions.iter().all(|dir| dir.is_dir()), "each format version has its golden ledgers: {versions:?}");
    versions
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())).collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

fn read(storage: &dyn Storage) -> (Vec<Vec<u8>>, Vec<Hash>, Scan) {
    let (mut records, mut hashes) = (Vec::new(), Vec::new());
    let scan = scan(storage, &mut |record| {
        assert_eq!(record.seq, records.len() as u64 + 1);
        records.push(record.bytes.to_vec());
        hashes.push(Hash(record.hash));
        Ok(())
    });
    (records, hashes, scan.unwrap().unwrap())
}

#[test]
fn a_ledger_is_verified_dumped_and_gone_on_with() {
    for version in versions() {
        let golden = version.join("ledger");
        let expected = fs::read_to_string(golden.join("expected.txt")).unwrap();
        let site = Site::new("golden");
        let wal = site.data().join("wal");
        copy(&golden.join("wal"), &wal);

        let (verified, dumped) = (site.verify(&[]), site.dump(&[]));
        assert_eq!((verified.code, dumped.code), (Some(0), Some(0)), "{verified:?} {dumped:?}");
        assert!(verified.stdout.clone() + &dumped.stdout == expected, "{}: {verified:?}", golden.display());
        assert_eq!(files(&wal), files(&golden.join("wal")), "verify and dump change nothing");

        let (records, hashes, scan) = read(&Directory::read_only(&wal));
        assert!(dumped.stdout.lines().map(str::as_bytes).eq(records.iter().map(Vec::as_slice)));
        let head = format!("{} {}", records.len(), hashes[hashes.len() - 1]);
        assert_eq!(verified.stdout.lines().last(), Some(&*format!("head {head}")));
        assert_eq!((scan.ending, scan.repaired.len()), (Ending::Clean, 0));

        let agent = site.start_command(site.serve(&[]).env(NO_ENGINE.0, NO_ENGINE.1));
        for (job, state) in [
            ("golden.sealed", "SEALED"),
            ("golden.failed", "FAILED"),
            ("golden.crashed", "SEALED"),
            ("golden.cancelled", "CANCELLED"),
            ("golden.timeout", "FAILED"),
            ("golden.survives", "SEALED"),
        ] {
            assert_eq!(agent.get(&format!("/api/jobs/{job}")).json()["state"], state, "{job}");
        }
        let receipt = agent.accepted(&manifest(&job_id("golden"), &["true"]));
        assert_eq!(agent.terminate(), Some(0));
        let receipt = format!("{}:{}", receipt["seq"], receipt["hash"].as_str().unwrap());
        let verified = site.verify(&["--expect", &receipt, "--expect", &head.replace(' ', ":")]);
        assert_eq!(verified.code, Some(0), "{verified:?}");
        assert!(site.dump(&[]).stdout.starts_with(&dumped.stdout), "what was there is there as it was");
    }
}

#[test]
fn plain_records_and_a_torn_tail_are_read_and_gone_on_with() {
    for version in versions() {
        let golden = version.join("raw");
        let expected = fs::read_to_string(golden.join("expected.txt")).unwrap();
        let site = Site::new("golden-raw");
        let wal = site.dir().join("wal");
        copy(&golden.join("wal"), &wal);
        let text = |records: &[Vec<u8>], hashes: &[Hash], scan: &Scan| {
            let Ending::Torn { file, offset } = &scan.ending else { panic!("the tail is torn: {:?}", scan.ending) };
            let file = Path::new(file).file_name().unwrap().to_str().unwrap();
            let mut text = format!("torn {file} {offset}\nhead {} {}\n", records.len(), hashes[hashes.len() - 1]);
            for (seq, (record, hash)) in (1..).zip(records.iter().zip(hashes)) {
                writeln!(text, "{seq} {} {hash}", record.len()).unwrap();
            }
            text
        };
        let (records, hashes, found) = read(&Directory::read_only(&wal));
        assert_eq!(text(&records, &hashes, &found), expected, "{}", golden.display());

        let storage = Arc::new(Directory::open(&wal, Caching::Buffered).unwrap());
        let options = Options { segment_size: 96 << 10, first_segment_size: 64 << 10, mark_after: None };
        let (log, _) = Wal::open(storage.clone(), options, &mut |_| Ok(()), Box::new(|_| {})).unwrap();
        let (seq, _) = log.append(|_, _, body| body.extend_from_slice(b"and on it goes")).unwrap();
        log.wait(seq).unwrap();
        log.close();
        let (longer, _, after) = read(&*storage);
        assert_eq!((longer.len(), after.ending), (records.len() + 1, Ending::Clean));
        assert!(longer.starts_with(&records) && longer.ends_with(&[b"and on it goes".to_vec()]));
        assert_eq!(after.position.segno, found.position.segno + 1, "a new segment seals the torn one");
        let before = files(&golden.join("wal"));
        let now = files(&wal);
        let old_segments = before.iter().filter(|(name, _)| name.ends_with(".log"));
        assert!(old_segments.clone().count() >= 3);
        assert!(old_segments.into_iter().all(|(name, bytes)| now[name] == *bytes), "no old segment is written");
    }
}

#[test]
fn the_next_version_is_refused_by_its_number_and_not_touched() {
    let ledger = versions().pop().unwrap().join("ledger/wal");
    let (next, known) = (FORMAT_VERSION + 1, FORMAT_VERSION);
    for copies in [&[0][..], &[1], &[0, 1]] {
        let site = Site::new("golden-next");
        let wal = site.data().join("wal");
        copy(&ledger, &wal);
        let path = wal.join(segment_name(1));
        let mut bytes = fs::read(&path).unwrap();
        for block in copies.iter().map(|copy| copy * BLOCK) {
            bytes[block + 8..block + 12].copy_from_slice(&next.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[block..block + BLOCK - 4]);
            bytes[block + BLOCK - 4..block + BLOCK].copy_from_slice(&crc.to_le_bytes());
        }
        fs::write(&path, bytes).unwrap();
        let before = files(&wal);
        let says = format!("{}: format version {next}; this program reads version {known}", path.display());
        let dump = Ended::of(hackbrain().arg("dump").arg("--data").arg(site.data()));
        for ended in [site.verify(&[]), site.refused(&[]), dump] {
            assert_eq!(ended.code, Some(65), "copies {copies:?}: {ended:?}");
            assert!(ended.stderr.contains(&says), "copies {copies:?}: should say {says:?}: {ended:?}");
        }
        assert!(files(&wal) == before, "copies {copies:?}: a file was changed");
    }
}
