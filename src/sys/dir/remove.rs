//! A tree removed, or counted, by descriptors: nothing is followed, and however deep it is, few of it are open at a time.

use std::ffi::{OsStr, OsString};
use std::fs::{Permissions, set_permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;

use super::{Dir, FileType, check, single};

/// What a tree has, or had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Names that are no directories.
    pub files: u64,
    /// Bytes of the regular files, one that has several names by each of them.
    pub bytes: u64,
}

/// A directory on the way down.
struct Level {
    name: OsString,
    id: (u64, u64),
    /// Its subdirectories that are yet to be entered.
    rest: Vec<OsString>,
}

impl Dir {
    /// Removes `name`, a single component, with all that is below it, and tells what that was. What a mount hides is not
    /// looked for: the caller sees to it that nothing is mounted there. A directory that its owner may not enter or write
    /// in is made so first. Nothing there is no error.
    ///
    /// # Errors
    /// The first thing that could not be removed; the others are.
    pub fn remove_tree(&self, name: &OsStr) -> (Counted, io::Result<()>) {
        self.walk(name, true)
    }

    /// Counts what [`Dir::remove_tree`] would remove.
    ///
    /// # Errors
    /// The first thing that could not be looked at; it is not counted.
    pub fn count_tree(&self, name: &OsStr) -> (Counted, io::Result<()>) {
        self.walk(name, false)
    }

    fn walk(&self, name: &OsStr, removes: bool) -> (Counted, io::Result<()>) {
        let mut walk = Walk { removes, counted: Counted::default(), outcome: Ok(()) };
        if let Err(error) = walk.run(self, name) {
            walk.note(error);
        }
        (walk.counted, walk.outcome)
    }

    fn unlink(&self, name: &OsStr, flags: libc::c_int) -> io::Result<()> {
        let name = single(name)?;
        // SAFETY: `name` is NUL-terminated and outlives the call; the descriptor is open.
        check(unsafe { libc::unlinkat(self.fd.as_raw_fd(), name.as_ptr(), flags) })
    }
}

struct Walk {
    removes: bool,
    counted: Counted,
    /// The first fault.
    outcome: io::Result<()>,
}

impl Walk {
    fn note(&mut self, error: io::Error) {
        // What somebody else has removed meanwhile is gone as well.
        if self.outcome.is_ok() && error.kind() != io::ErrorKind::NotFound {
            self.outcome = Err(error);
        }
    }

    fn run(&mut self, above: &Dir, name: &OsStr) -> io::Result<()> {
        if !self.takes_file(above, name)? {
            return Ok(());
        }
        let root = above.stat()?.id;
        let mut dir = above.open_child(name)?;
        let mut levels = vec![self.enter(&dir, name)?];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.rest.pop() {
                let entered = dir.open_child(&name).and_then(|child| Ok((self.enter(&child, &name)?, child)));
                match entered {
                    Ok((level, child)) => {
                        dir = child;
                        levels.push(level);
                    }
                    Err(error) => self.note(error),
                }
                continue;
            }
            let name = levels.pop().map(|level| level.name).unwrap_or_default();
            let parent = dir.open_parent()?;
            // One that was moved away while it was emptied leads elsewhere.
            if parent.stat()?.id != levels.last().map_or(root, |level| level.id) {
                return Err(io::Error::other("a directory was moved while it was removed"));
            }
            dir = parent;
            if self.removes
                && let Err(error) = dir.unlink(&name, libc::AT_REMOVEDIR)
            {
                self.note(error);
            }
        }
        Ok(())
    }

    /// Counts, and removes, all in a directory that is no directory.
    fn enter(&mut self, dir: &Dir, name: &OsStr) -> io::Result<Level> {
        let stat = dir.stat()?;
        if self.removes && stat.mode & 0o700 != 0o700 {
            // It may be somebody else's, and root needs no right; what follows tells.
            let _ = set_permissions(dir.proc_path(), Permissions::from_mode(0o700));
        }
        let mut rest = Vec::new();
        for name in dir.names()? {
            match self.takes_file(dir, &name) {
                Ok(true) => rest.push(name),
                Ok(false) => {}
                Err(error) => self.note(error),
            }
        }
        Ok(Level { name: name.to_owned(), id: stat.id, rest })
    }

    /// Counts, and removes, what is no directory; whether it is one.
    fn takes_file(&mut self, dir: &Dir, name: &OsStr) -> io::Result<bool> {
        let stat = dir.stat_child(name)?;
        if stat.file_type == FileType::Directory {
            return Ok(true);
        }
        if self.removes {
            dir.unlink(name, 0)?;
        }
        self.counted.files += 1;
        self.counted.bytes += if stat.file_type == FileType::Regular { stat.size } else { 0 };
        Ok(false)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::Scratch;
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_links_lead_to_stays_and_closed_directories_go() {
        let scratch = Scratch::new("links");
        let (tree, outside) = (scratch.0.join("tree"), scratch.0.join("outside"));
        fs::create_dir_all(tree.join("a/closed/deep")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(outside.join("kept"), "kept").unwrap();
        fs::write(tree.join("a/closed/deep/file"), "12345").unwrap();
        fs::write(tree.join("a/-rf"), "123").unwrap();
        symlink(&outside, tree.join("a/to-dir")).unwrap();
        symlink(outside.join("kept"), tree.join("to-file")).unwrap();
        fs::hard_link(outside.join("kept"), tree.join("hard")).unwrap();
        fs::set_permissions(tree.join("a/closed"), Permissions::from_mode(0o000)).unwrap();
        let dir = Dir::open(&scratch.0).unwrap();
        let (counted, outcome) = dir.count_tree(OsStr::new("tree"));
        outcome.unwrap();
        assert_eq!(counted, Counted { files: 5, bytes: 12 });
        let (removed, outcome) = dir.remove_tree(OsStr::new("tree"));
        outcome.unwrap();
        assert_eq!(removed, counted);
        assert_eq!(dir.names().unwrap(), ["outside"]);
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
        let (removed, outcome) = dir.remove_tree(OsStr::new("tree"));
        assert!(outcome.is_ok() && removed == Counted::default(), "nothing there is no error");
        symlink("outside", scratch.0.join("link")).unwrap();
        assert_eq!(dir.remove_tree(OsStr::new("link")).0.files, 1);
        assert!(outside.join("kept").exists(), "a link by that name is only itself");
        assert!(dir.remove_tree(OsStr::new("..")).1.is_err());
    }

    #[test]
    fn a_tree_may_be_deeper_than_a_path_or_than_files_may_be_open() {
        let scratch = Scratch::new("deep");
        let base = Dir::open(&scratch.0).unwrap();
        let mut dir = base.try_clone().unwrap();
        for _ in 0..5000 {
            fs::create_dir(dir.proc_path().join("d")).unwrap();
            dir = dir.open_child(OsStr::new("d")).unwrap();
        }
        fs::write(dir.proc_path().join("f"), "x").unwrap();
        drop(dir);
        let (removed, outcome) = base.remove_tree(OsStr::new("d"));
        outcome.unwrap();
        assert_eq!(removed, Counted { files: 1, bytes: 1 });
        assert!(base.names().unwrap().is_empty());
    }
}
