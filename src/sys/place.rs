//! Where a directory lies on its file system, whatever mount it is reached through.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::dir::{Dir, unescape};

/// A file system, and a directory's path within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// `MAJOR:MINOR`.
    pub device: String,
    /// From the file system's own root.
    pub path: PathBuf,
}

impl Place {
    /// Where `dir` lies now. A bind mount of a part of a tree leads to the same places as the tree.
    ///
    /// # Errors
    /// `/proc` is not mounted; `NotFound` for a mount that has been taken off.
    pub fn of(dir: &Dir) -> io::Result<Self> {
        let link = dir.proc_path();
        let number = link.file_name().unwrap_or_default();
        let info = std::fs::read_to_string(Path::new("/proc/self/fdinfo").join(number))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).map_or("", str::trim);
        let table = std::fs::read("/proc/self/mountinfo")?;
        Self::within(&table, mount, &dir.real_path()?).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Whether one is the other or lies below it.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.device == other.device && (self.path.starts_with(&other.path) || other.path.starts_with(&self.path))
    }

    /// `path`, on the mount with this id, as the lines of mountinfo tell.
    fn within(table: &[u8], mount: &str, path: &Path) -> Option<Self> {
        let line = table.split(|&b| b == b'\n').find_map(|line| {
            let fields: Vec<&[u8]> = line.splitn(6, |&b| b == b' ').collect();
            (*fields.first()? == mount.as_bytes()).then_some(fields)
        })?;
        let as_path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
        let below = path.strip_prefix(as_path(line.get(4)?)).ok()?;
        let root = as_path(line.get(3)?);
        let path = if below.as_os_str().is_empty() { root } else { root.join(below) };
        Some(Self { device: String::from_utf8_lossy(line.get(2)?).into_owned(), path })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::dir::{bind_mount, may_mount, unmount};

    #[test]
    fn places_from_mountinfo() {
        let table = b"36 35 98:0 / / rw - ext3 /dev/root rw\n37 36 98:0 /srv/a\\040b /mnt/x rw - ext3 /dev/root rw\n\
            38 36 0:44 / /mnt/x/y rw - tmpfs t rw\n";
        let within = |mount: &str, path: &str| {
            let place = Place::within(table, mount, Path::new(path))?;
            Some((place.device, place.path.to_str().unwrap().to_owned()))
        };
        let expected = |device: &str, path: &str| Some((device.to_owned(), path.to_owned()));
        assert_eq!(within("36", "/srv/a b/c"), expected("98:0", "/srv/a b/c"));
        assert_eq!(within("37", "/mnt/x/c"), expected("98:0", "/srv/a b/c"));
        assert_eq!(within("37", "/mnt/x"), expected("98:0", "/srv/a b"));
        assert_eq!(within("38", "/mnt/x/y/c"), expected("0:44", "/c"));
        assert_eq!((within("3", "/mnt"), within("37", "/else"), within("", "/")), (None, None, None));
    }

    #[test]
    fn a_part_of_a_tree_under_another_name_is_the_same_place() {
        if !may_mount().unwrap() {
            return;
        }
        let base = std::env::temp_dir().join(format!("hackbrain-place-{}", std::process::id()));
        for name in ["tree/part/of it", "tree/other", "alias"] {
            std::fs::create_dir_all(base.join(name)).unwrap();
        }
        let open = |name: &str| Dir::open(&base.join(name)).unwrap();
        let place = |name: &str| Place::of(&open(name)).unwrap();
        bind_mount(&open("tree/part"), &base.join("alias"), false).unwrap();
        let (alias, below) = (place("alias"), place("alias/of it"));
        let same = (alias == place("tree/part"), below == place("tree/part/of it"));
        let overlaps = (below.overlaps(&place("tree")), below.overlaps(&place("tree/other")));
        unmount(&base.join("alias")).unwrap();
        std::fs::remove_dir_all(&base).unwrap();
        assert_eq!((same, overlaps), ((true, true), (true, false)));
    }
}
