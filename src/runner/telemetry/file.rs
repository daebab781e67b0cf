//! An attempt's samples on disk: JSON lines, thinned when there are many, so that a run of any length has a few thousand.
//!
//! Not synced: what is lost with the host is a few seconds of a chart, and the totals stand in the ledger.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::super::cgroup::Sample;
use super::{EVERY, Line};

/// Lines at which every second one is dropped. Counters are cumulative, so no total is lost.
const LINES_MAX: usize = 4096;
/// Bytes of a file that are read back. It has far fewer; one that has more is not ours.
const BYTES_MAX: u64 = 16 << 20;
/// Last gaps between samples from which the spacing of a file is told.
const GAPS: usize = 64;
/// Mode of a new file.
const FILE_MODE: u32 = 0o640;

/// One attempt's file, open for appending.
#[derive(Debug)]
pub(super) struct SampleFile {
    path: PathBuf,
    file: File,
    lines: usize,
    lines_max: usize,
    /// One of so many samples is kept: a power of two.
    stride: u64,
    /// Samples since the last one that was kept.
    since: u64,
}

impl SampleFile {
    /// Where the samples of an attempt lie; `logs` is the job's directory.
    pub fn path(logs: &Path, attempt: u32) -> PathBuf {
        logs.join(format!("{attempt}.telemetry"))
    }

    /// Opens a file, or goes on in one that an earlier agent left: behind its last whole line, with its spacing. Gives the
    /// last sample in it too, if there is one.
    ///
    /// # Errors
    /// The file cannot be made, read or cut.
    pub fn open(path: &Path) -> io::Result<(Self, Option<Sample>)> {
        Self::open_with(path, LINES_MAX)
    }

    fn open_with(path: &Path, lines_max: usize) -> io::Result<(Self, Option<Sample>)> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut file = OpenOptions::new().create(true).read(true).append(true).mode(FILE_MODE).open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(BYTES_MAX).read_to_end(&mut bytes)?;
        // What a full disk or the end of the host left of a line is no sample.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        let text = String::from_utf8_lossy(&bytes[..whole]);
        let samples: Vec<Sample> = text.lines().rev().take(GAPS + 1).filter_map(Line::parse).collect();
        let stride = stride_of(&samples);
        let lines = text.lines().count();
        Ok((Self { path: path.to_owned(), file, lines, lines_max, stride, since: stride }, samples.first().copied()))
    }

    /// Adds a sample's line, without its newline, if it is its turn.
    ///
    /// # Errors
    /// The disk is full, or the file cannot be written. It must then be opened anew.
    pub fn add(&mut self, line: &str) -> io::Result<()> {
        self.since += 1;
        if self.since < self.stride {
            return Ok(());
        }
        self.add_last(line)?;
        self.since = 0;
        if self.lines >= self.lines_max { self.thin() } else { Ok(()) }
    }

    /// Adds the attempt's last line, whose turn it need not be and which is never dropped.
    ///
    /// # Errors
    /// As for [`SampleFile::add`].
    pub fn add_last(&mut self, line: &str) -> io::Result<()> {
        // In one write, so that a reader sees it whole or not at all.
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.lines += 1;
        Ok(())
    }

    /// Keeps the first line and every second one after it.
    fn thin(&mut self) -> io::Result<()> {
        let bytes = fs::read(&self.path)?;
        let kept: Vec<u8> = bytes.split_inclusive(|byte| *byte == b'\n').step_by(2).flatten().copied().collect();
        let aside = self.path.with_extension("telemetry.new");
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(FILE_MODE).open(&aside)?;
        file.write_all(&kept)?;
        fs::rename(&aside, &self.path)?;
        self.file = OpenOptions::new().append(true).open(&self.path)?;
        // Where the last line was dropped, the one before it is as far back as the samples were apart.
        self.since = if self.lines.is_multiple_of(2) { self.stride } else { 0 };
        self.lines = self.lines.div_ceil(2);
        self.stride = self.stride.saturating_mul(2);
        Ok(())
    }
}

/// One of how many samples a file keeps, from its last samples, newest first: the middle of the gaps, since the agent may have
/// been away in one of them.
fn stride_of(samples: &[Sample]) -> u64 {
    let mut gaps: Vec<u64> = samples.windows(2).map(|pair| pair[0].time.0.saturating_sub(pair[1].time.0)).collect();
    gaps.sort_unstable();
    let Some(gap) = gaps.get(gaps.len() / 2) else { return 1 };
    let every = EVERY.as_micros() as u64;
    // A gap of three and a half samples is one of four, and one of two and a half is one of two.
    let ratio = (gap + gap / 3) / every;
    if ratio < 2 { 1 } else { 1 << ratio.ilog2() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::ledger::time::Time;

    struct Dir(PathBuf);

    impl Dir {
        fn new(what: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("hb-telemetry-{what}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn file(&self) -> PathBuf {
            SampleFile::path(&self.0, 1)
        }

        fn seconds(&self) -> Vec<u64> {
            let text = fs::read_to_string(self.file()).unwrap();
            text.lines().map(|line| Line::parse(line).unwrap().time.0 / 1_000_000).collect()
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn sample(second: u64) -> Sample {
        Sample { time: Time(second * 1_000_000), cpu_ns: Some(second), ..Sample::default() }
    }

    fn line(second: u64) -> String {
        Line::text("a", 1, &sample(second))
    }

    #[test]
    fn a_long_run_is_thinned_evenly_and_stays_bounded() {
        let dir = Dir::new("thin");
        let (mut file, last) = SampleFile::open_with(&dir.file(), 16).unwrap();
        assert_eq!(last, None);
        let mut largest = 0;
        for second in 0..1000 {
            file.add(&line(second)).unwrap();
            largest = largest.max(dir.seconds().len());
        }
        let seconds = dir.seconds();
        assert_eq!(largest, 15);
        assert_eq!(seconds[..3], [0, 128, 256], "{seconds:?}");
        assert!(seconds.windows(2).all(|pair| pair[1] - pair[0] == 128), "{seconds:?}");
        assert_eq!(*seconds.last().unwrap(), 896);
        file.add_last(&line(1000)).unwrap();
        assert_eq!(dir.seconds().last(), Some(&1000), "the end is kept, whenever it comes");
        assert_eq!(fs::read_dir(&dir.0).unwrap().count(), 1);
    }

    #[test]
    fn an_agent_that_comes_back_goes_on_behind_the_last_whole_line_with_the_same_spacing() {
        let dir = Dir::new("again");
        let (mut file, _) = SampleFile::open_with(&dir.file(), 16).unwrap();
        for second in 0..100 {
            file.add(&line(second)).unwrap();
        }
        assert_eq!(file.stride, 8);
        let before = dir.seconds();
        let mut torn = fs::read(dir.file()).unwrap();
        torn.extend_from_slice(&line(104).as_bytes()[..20]);
        fs::write(dir.file(), torn).unwrap();
        let (mut file, last) = SampleFile::open_with(&dir.file(), 16).unwrap();
        assert_eq!((file.stride, last), (8, Some(sample(*before.last().unwrap()))));
        // It was away for long, which is not the spacing.
        for second in 5000..5100 {
            file.add(&line(second)).unwrap();
        }
        let seconds = dir.seconds();
        let (old, new) = seconds.split_at(seconds.iter().position(|second| *second >= 5000).unwrap());
        assert!(!old.is_empty() && old.iter().all(|second| before.contains(second)), "{seconds:?}");
        assert!(new.len() > 2 && new.windows(2).all(|pair| pair[1] - pair[0] == file.stride), "{seconds:?}");
    }

    #[test]
    fn the_spacing_of_a_file() {
        let newest_first = |gaps: &[u64]| {
            let mut at = 1_000_000_000;
            let mut samples = vec![Sample { time: Time(at), ..Sample::default() }];
            for milliseconds in gaps {
                at -= milliseconds * 1000;
                samples.push(Sample { time: Time(at), ..Sample::default() });
            }
            samples
        };
        for (gaps, expected) in [
            (&[][..], 1),
            (&[1000], 1),
            (&[1400, 900, 1000], 1),
            (&[2000, 1900, 2100, 90_000], 2),
            (&[3600, 4000, 4400], 4),
            (&[8000; 5], 8),
            (&[10, 20, 30], 1),
        ] {
            assert_eq!(stride_of(&newest_first(gaps)), expected, "{gaps:?}");
        }
        assert_eq!(stride_of(&[]), 1);
        // A clock that went back.
        assert_eq!(stride_of(&[sample(1), sample(9)]), 1);
    }

    #[test]
    fn a_file_of_nonsense_is_gone_on_with() {
        let dir = Dir::new("nonsense");
        fs::write(dir.file(), b"\xff\xfe\nnot json\n{\"job_id\":1}\ntorn").unwrap();
        let (mut file, last) = SampleFile::open(&dir.file()).unwrap();
        assert_eq!((file.stride, file.lines, last), (1, 3, None));
        file.add(&line(5)).unwrap();
        assert!(fs::read(dir.file()).unwrap().ends_with(format!("\n{}\n", line(5)).as_bytes()));
    }
}
