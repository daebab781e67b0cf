//! Entries of a tar archive as GNU tar writes them, which every reader takes: names of any length and bytes, files of
//! any size. Times and owners are zero. Pure.

/// What an archive is made of, in bytes.
const BLOCK: u64 = 512;
/// Two empty blocks end an archive.
pub const END: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];
/// Longest name in a header itself, in bytes.
const NAME_BYTES: usize = 100;
/// Sizes from here on do not fit eleven octal digits.
const OCTAL_MAX: u64 = 1 << 33;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file, mode 0644.
    File,
    /// A file that anybody may execute, mode 0755.
    Executable,
    /// A directory, mode 0755; its name ends with a slash.
    Directory,
}

/// What stands before an entry's content. `name` holds no NUL byte.
pub fn header(name: &[u8], kind: Kind, size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > NAME_BYTES {
        // A record of its own holds the name, ended by a NUL byte; the header then has as much of it as fits.
        let length = name.len() as u64 + 1;
        out.extend_from_slice(&block(b"././@LongLink", b'L', 0o644, length));
        out.extend_from_slice(name);
        out.push(0);
        out.resize(out.len() + padding(length), 0);
    }
    let (flag, mode) = match kind {
        Kind::File => (b'0', 0o644),
        Kind::Executable => (b'0', 0o755),
        Kind::Directory => (b'5', 0o755),
    };
    out.extend_from_slice(&block(&name[..name.len().min(NAME_BYTES)], flag, mode, size));
    out
}

/// Zero bytes that follow a content of `size` bytes, up to the end of its last block.
pub fn padding(size: u64) -> usize {
    (size.wrapping_neg() % BLOCK) as usize
}

/// Bytes of a whole entry.
pub fn length(name: &[u8], size: u64) -> u64 {
    let long_name = if name.len() > NAME_BYTES { BLOCK + (name.len() as u64 + 1).next_multiple_of(BLOCK) } else { 0 };
    long_name + BLOCK + size.next_multiple_of(BLOCK)
}

fn block(name: &[u8], flag: u8, mode: u32, size: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, format!("{mode:07o}").as_bytes());
    // User, group.
    put(108, b"0000000");
    put(116, b"0000000");
    if size < OCTAL_MAX {
        put(124, format!("{size:011o}").as_bytes());
    } else {
        // Base 256: the highest bit says so, the number stands at the end.
        put(124, &[0x80]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000");
    // The checksum is taken with spaces in its own place.
    put(148, b"        ");
    put(156, &[flag]);
    put(257, b"ustar  \0");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// What Python's tarfile reads of these headers: `name mode size type mtime uid` each.
    fn read_by_python(archive: &[u8]) -> String {
        let script = "import sys, tarfile\n\
             t = tarfile.open(fileobj=sys.stdin.buffer, mode='r|')\n\
             for m in t: print(ascii(m.name), oct(m.mode), m.size, m.type.decode(), m.mtime, m.uid)\n";
        let mut python = Command::new("python3");
        let mut child = python.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(archive).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    }

    #[test]
    fn names_of_any_length_are_read_back_and_lengths_are_right() {
        let mut archive = Vec::new();
        let mut expected = String::new();
        for length_of_name in [1, 99, 100, 101, 511, 512, 513, 5000] {
            for size in [0, 1, 511, 512, 513] {
                let name = vec![b'n'; length_of_name];
                let begin = archive.len();
                archive.extend_from_slice(&header(&name, Kind::Executable, size));
                archive.resize(archive.len() + size as usize, b'c');
                archive.resize(archive.len() + padding(size), 0);
                assert_eq!((archive.len() - begin) as u64, length(&name, size), "{length_of_name} {size}");
                expected += &format!("'{}' 0o755 {size} 0 0 0\n", "n".repeat(length_of_name));
            }
        }
        archive.extend_from_slice(&header(b"d\xff\n/", Kind::Directory, 0));
        expected += "'d\\udcff\\n' 0o755 0 5 0 0\n";
        archive.extend_from_slice(&END);
        assert_eq!(read_by_python(&archive), expected);
    }

    #[test]
    fn sizes_beyond_eleven_octal_digits_are_read_back() {
        for size in [OCTAL_MAX - 1, OCTAL_MAX, 9_000_000_000_000] {
            let script = "import sys, tarfile\n\
                          print(tarfile.TarInfo.frombuf(bytes.fromhex(sys.argv[1]), 'utf-8', 'strict').size)";
            let hex: String = header(b"n", Kind::File, size).iter().map(|byte| format!("{byte:02x}")).collect();
            let output = Command::new("python3").args(["-c", script, &hex]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), size.to_string());
        }
    }
}
