//! The scan against a plain reading of the same bytes, with blocks so small that everything happens at their borders.

use super::*;

/// A generator of numbers; the same seed gives the same numbers.
struct Random(u64);

impl Random {
    /// Below `most`.
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }

    fn log(&mut self, length: u64) -> Vec<u8> {
        let newlines = 1 + self.below(20);
        (0..length).map(|_| if self.below(40) < newlines { b'\n' } else { b"ab\0"[self.below(3) as usize] }).collect()
    }
}

/// What a scan of `log` says, with blocks of `block` bytes, of which some are read short.
fn scanned(log: &[u8], from: u64, most: u64, find: Option<&[u8]>, limit: u64, block: usize) -> serde_json::Value {
    let mut scan = Scan::new(from..log.len() as u64, most, find, limit);
    let mut buffer = vec![b'a'; block];
    while !scan.is_done() {
        scan.block(&mut buffer, &|into, at| {
            let rest = &log[at as usize..];
            let short = if at.is_multiple_of(3) { into.len().div_ceil(2) } else { into.len() };
            let read = short.min(rest.len());
            into[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        })
        .unwrap();
    }
    let mut text = Vec::new();
    scan.finish().write(&mut |piece| {
        text.extend_from_slice(piece);
        true
    });
    serde_json::from_slice(&text).unwrap()
}

/// The same, line by line.
fn expected(log: &[u8], from: u64, most: u64, find: Option<&[u8]>, limit: u64) -> serde_json::Value {
    let (mut lines, mut at) = (Vec::new(), from as usize);
    for line in log[at..].split_inclusive(|&byte| byte == b'\n') {
        if !lines.is_empty() && (at + line.len()) as u64 > from + most {
            break;
        }
        lines.push((at, line));
        at += line.len();
    }
    // No line can be told to end where the stretch does, unless it was seen to.
    let unfinished = lines.last().filter(|(_, line)| !line.ends_with(b"\n")).map(|(offset, _)| *offset);
    let holds = |line: &[u8]| find.is_some_and(|text| line.windows(text.len()).any(|window| window == text));
    let matches: Vec<_> =
        lines.iter().enumerate().filter(|(_, (_, line))| holds(line)).map(|(n, (offset, _))| (n, *offset)).collect();
    let ended = lines.len() - usize::from(unfinished.is_some());
    let every = (0..).map(|doubled| (EVERY_MIN as usize) << doubled).find(|every| ended < every * OFFSETS_MAX);
    let every = every.unwrap();
    json!({
        "from": from, "end": at, "size": log.len(), "lines": lines.len(), "unfinished": unfinished, "every": every,
        "offsets": lines.iter().step_by(every).map(|(offset, _)| *offset).collect::<Vec<_>>(),
        "matching": find.is_some().then_some(matches.len()),
        "matches": matches.iter().take(limit as usize).collect::<Vec<_>>(),
    })
}

#[test]
fn any_blocks_give_what_a_plain_reading_gives() {
    let seed = std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261_127);
    let random = &mut Random(seed);
    for round in 0..20_000 {
        let length = random.below(200);
        let log = random.log(length);
        let from = random.below(length + 1);
        let most = [1, random.below(60) + 1, length, u64::MAX][random.below(4) as usize];
        let text: Vec<u8> = (0..=random.below(4)).map(|_| b"ab\0"[random.below(3) as usize]).collect();
        let find = (random.below(5) > 0).then_some(&text[..]);
        let limit = random.below(6) + 1;
        let block = (2 * text.len() as u64 + random.below(30)) as usize;
        let told = scanned(&log, from, most, find, limit, block);
        let context = format!(
            "seed {seed}, round {round}: {:?} from {from}, most {most}, find {find:?}, limit {limit}, blocks of {block}",
            String::from_utf8_lossy(&log)
        );
        // It ends with the last line that ends in the stretch, or some lines behind the first, where that is longer.
        let end = told["end"].as_u64().unwrap();
        let line =
            |at: u64| log[at as usize..].iter().position(|&byte| byte == b'\n').map_or(length, |n| at + n as u64 + 1);
        let until = from.saturating_add(most).min(length);
        let is_right = if line(from) <= until {
            end <= until && (end == length || line(end) > until)
        } else {
            (line(from)..line(from) + block as u64).contains(&end)
        };
        assert!(is_right || from == length, "{context}: {told}");
        assert_eq!(told, expected(&log, from, end - from, find, limit), "{context}");

        // Going on at each end gives the whole.
        let (mut at, mut lines, mut matches) = (from, 0, Vec::new());
        while at < length {
            let part = scanned(&log, at, most, find, u64::MAX, block);
            assert!(part["end"].as_u64().unwrap() > at, "{context}");
            for found in part["matches"].as_array().unwrap() {
                matches.push(json!([found[0].as_u64().unwrap() + lines, found[1]]));
            }
            lines += part["lines"].as_u64().unwrap();
            at = part["end"].as_u64().unwrap();
        }
        let whole = expected(&log, from, length, find, u64::MAX);
        assert_eq!((json!(lines), json!(matches)), (whole["lines"].clone(), whole["matches"].clone()), "{context}");
    }
}

#[test]
fn an_index_is_thinned_as_the_log_grows() {
    for (lines, every) in [(0, 1024), (1, 1024), (1024, 1024), (1025, 1024), ((4 << 20) - 1, 1024), (4 << 20, 2048)] {
        let log = b"\n".repeat(lines);
        let told = scanned(&log, 0, u64::MAX, None, 1, 1 << 16);
        assert_eq!(told["every"], every, "{lines} lines");
        assert_eq!(told["offsets"].as_array().unwrap().len(), lines.div_ceil(every), "{lines} lines");
        assert_eq!(told, expected(&log, 0, u64::MAX >> 1, None, 1), "{lines} lines");
    }
    let log = b"a\n".repeat(9 << 20);
    let told = scanned(&log, 2, u64::MAX, Some(b"a"), 2, 1 << 16);
    assert_eq!((&told["every"], &told["lines"]), (&json!(4096), &json!((9 << 20) - 1)));
    assert_eq!(told["offsets"][2303], 2 + 2 * 2303 * 4096);
    assert_eq!((&told["matching"], &told["matches"]), (&json!((9 << 20) - 1), &json!([[0, 2], [1, 4]])));
}

#[test]
fn a_log_that_is_cut_meanwhile_ends_where_it_ends() {
    let log = b"one\ntwo\nthr";
    let mut scan = Scan::new(0..1000, u64::MAX, Some(b"t"), 10);
    let mut buffer = [0; 8];
    while !scan.is_done() {
        let read = |into: &mut [u8], at: u64| {
            let rest = &log[at as usize..];
            let read = into.len().min(rest.len());
            into[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        };
        scan.block(&mut buffer, &read).unwrap();
    }
    let found = scan.finish();
    assert_eq!((found.size, found.end, found.lines, found.unfinished), (11, 11, 3, Some(8)));
    assert_eq!(found.matching, Some(2));
}

#[test]
fn rising_numbers_come_back() {
    let numbers = [0, 0, 1, 127, 128, 16_511, 1 << 40, u64::MAX];
    let mut rising = Rising::default();
    numbers.iter().for_each(|&number| rising.push(number));
    assert_eq!(rising.iter().collect::<Vec<_>>(), numbers);
    assert_eq!(rising.every_second().iter().collect::<Vec<_>>(), [0, 1, 128, 1 << 40]);
}
