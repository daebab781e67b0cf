//! `bench hash`: the tree hash beside `find | xargs sha256sum` on the same files, from the page cache.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Instant;

use hackbrain::seal::hash_tree;
use hackbrain::sys::dir::Dir;

use crate::slice::Workplace;
use crate::stats::{Random, Spread, grouped};
use crate::{Fault, INTERRUPTED, machine};

/// Files, and the bytes of each.
const TREES: [(usize, usize); 3] = [(20_000, 4 << 10), (200, 8 << 20), (4, 512 << 20)];
/// Files in one directory.
const TOGETHER: usize = 500;
/// Files that one `sha256sum` is given: what is common, and the most even share.
const GIVEN: [usize; 2] = [64, 1];
/// Files beyond which a process for each one is no contest.
const ONE_BY_ONE_MAX: usize = 1000;

/// Measures and prints; each round has every contestant once, in another order.
pub fn run(dir: &Path, rounds: usize) -> Result<(), Fault> {
    let workplace = Workplace::create(dir)?;
    println!("## Hashing a tree, from the page cache\n\n{}", machine::facts(dir));
    println!("* {rounds} rounds, each contestant once in each, in random order; medians (least..most), in ms");
    println!("* peer: `find DIR -type f -print0 | xargs -0 -P CORES -n N sha256sum >/dev/null`; {}\n", version());
    println!("| files | bytes of each | hash_tree | peer, N = 64 | ratio | peer, N = 1 | ratio |");
    println!("|--:|--:|--:|--:|--:|--:|--:|");
    let mut random = Random(rounds as u64);
    for (files, bytes) in TREES {
        let tree = workplace.empty()?;
        furnish(&tree, files, bytes)?;
        let mut ours = Vec::new();
        let mut peers: [Vec<f64>; GIVEN.len()] = Default::default();
        let peers_here = if files > ONE_BY_ONE_MAX { 1 } else { GIVEN.len() };
        // The first round warms up.
        for round in 0..=rounds {
            let mut order: Vec<Option<usize>> = (0..peers_here).map(Some).chain([None]).collect();
            random.shuffle(&mut order);
            for contestant in order {
                if INTERRUPTED.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let began = Instant::now();
                match contestant {
                    None => hash(&tree, files, bytes)?,
                    Some(peer) => sha256sum(&tree, GIVEN[peer])?,
                }
                let took = began.elapsed().as_secs_f64() * 1e3;
                match contestant {
                    _ if round == 0 => {}
                    None => ours.push(took),
                    Some(peer) => peers[peer].push(took),
                }
            }
        }
        let own = Spread::of(ours).ok_or("no round was measured")?;
        let mut row = format!("| {} | {} | {} |", grouped(files as f64), grouped(bytes as f64), words(&own));
        for peer in peers {
            row += &match Spread::of(peer) {
                Some(peer) => format!(" {} | {:.2} |", words(&peer), peer.median / own.median),
                None => " – | – |".into(),
            };
        }
        println!("{row}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

fn furnish(tree: &Path, files: usize, bytes: usize) -> Result<(), Fault> {
    // Different from file to file, and not worth more time than that.
    let mut content = Random(bytes as u64).bytes(bytes.min(8 << 20));
    for number in 0..files {
        let directory = tree.join(format!("{:03}", number / TOGETHER));
        fs::create_dir_all(&directory)?;
        content[..8].copy_from_slice(&(number as u64).to_le_bytes());
        let mut file = fs::File::create(directory.join(format!("file-{number:05}")))?;
        for _ in 0..bytes.div_ceil(content.len()) {
            file.write_all(&content)?;
        }
    }
    // Writing back must not go on beside what is measured.
    let synced = Command::new("sync").arg("-f").arg(tree).status()?;
    if synced.success() { Ok(()) } else { Err("sync -f fails".into()) }
}

fn hash(tree: &Path, files: usize, bytes: usize) -> Result<(), Fault> {
    let found = hash_tree(&Dir::open(tree)?, &|_| ControlFlow::Continue(()))?;
    if (found.files, found.bytes) == (files as u64, (files * bytes) as u64) {
        return Ok(());
    }
    Err(format!("{} files and {} bytes were hashed", found.files, found.bytes).into())
}

fn sha256sum(tree: &Path, given: usize) -> Result<(), Fault> {
    let line = format!("find \"$0\" -type f -print0 | xargs -0 -P \"$(nproc)\" -n {given} sha256sum >/dev/null");
    let status = Command::new("sh").args(["-c", &line]).arg(tree).stdin(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("the peer ends with {status}").into()) }
}

fn version() -> String {
    let output = Command::new("sha256sum").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().next().unwrap_or("sha256sum").to_owned()
}

fn words(spread: &Spread) -> String {
    format!("{:.0} ({:.0}..{:.0})", spread.median, spread.min, spread.max)
}
