//! Directories by descriptor: opening below one without following anything, listing, and bind mounts of a descriptor.
//!
//! A path names whatever stands there when it is used; a descriptor names one inode for ever. So a path that a user gave is
//! walked once, here, and from then on only the descriptor is used.

mod remove;

use std::ffi::{CStr, CString, OsStr, OsString, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

pub use self::remove::Counted;

/// An open directory.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum FileType {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What `fstat` tells of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub file_type: FileType,
    /// Device and inode number: the identity of the inode while somebody holds it open.
    pub id: (u64, u64),
    /// Permission, setuid, setgid and sticky bits: `mode & 0o7777`.
    pub mode: u32,
    /// Hard links.
    pub links: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Last change of the content: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Last change of content or attributes: seconds and nanoseconds since 1970.
    pub changed: (i64, i64),
}

impl Dir {
    /// Opens a directory by its path, following symlinks: for the operator's paths, never for a user's. The descriptor is
    /// `O_PATH`: it names the directory and needs no permission to read it.
    ///
    /// # Errors
    /// What `open` gives; `ENOTDIR` where it is no directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let path = c_string(path.as_os_str())?;
        let fd = retry(|| {
            // SAFETY: `path` is NUL-terminated and outlives the call.
            unsafe { libc::open(path.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) }
        })?;
        // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Opens a directory below this one (`O_PATH`). No component of `relative` may be a symlink or a magic link, and none
    /// may lead out, not even through `..`.
    ///
    /// # Errors
    /// `ELOOP` for a symlink, `EXDEV` for a way out, `ENOTDIR`, `ENOENT`; `ENOSYS` before Linux 5.6.
    pub fn open_beneath(&self, relative: &Path) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        Ok(Self { fd: openat2_beneath(self.fd.as_raw_fd(), relative.as_os_str(), flags, 0)? })
    }

    /// Opens a file below this one for reading, under the same rules. A fifo is opened without waiting for its writer;
    /// look at [`stat_file`] before reading.
    ///
    /// # Errors
    /// As [`Dir::open_beneath`].
    pub fn open_file_beneath(&self, relative: &Path) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        Ok(openat2_beneath(self.fd.as_raw_fd(), relative.as_os_str(), flags, 0)?.into())
    }

    /// Opens the subdirectory `name` (`O_PATH`), unless something is mounted there.
    ///
    /// # Errors
    /// As [`Dir::open_beneath`]; `EXDEV` for a mount point, also for one of the same file system.
    pub fn open_child_unmounted(&self, name: &OsStr) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        single(name)?;
        Ok(Self { fd: openat2_beneath(self.fd.as_raw_fd(), name, flags, libc::RESOLVE_NO_XDEV)? })
    }

    /// Opens the file `name` for reading, unless something is mounted there; a fifo does not block.
    ///
    /// # Errors
    /// As [`Dir::open_child_unmounted`].
    pub fn open_child_file_unmounted(&self, name: &OsStr) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        single(name)?;
        Ok(openat2_beneath(self.fd.as_raw_fd(), name, flags, libc::RESOLVE_NO_XDEV)?.into())
    }

    /// Opens the subdirectory `name`, a single component (`O_PATH`); a symlink is refused with `ENOTDIR`.
    ///
    /// # Errors
    /// What `openat` gives.
    pub fn open_child(&self, name: &OsStr) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        Ok(Self { fd: openat(self.fd.as_raw_fd(), &single(name)?, flags)? })
    }

    /// Opens the file `name`, a single component, for reading; a symlink is refused with `ELOOP`, a fifo does not block.
    ///
    /// # Errors
    /// What `openat` gives.
    pub fn open_child_file(&self, name: &OsStr) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        Ok(openat(self.fd.as_raw_fd(), &single(name)?, flags)?.into())
    }

    /// Opens the directory above (`O_PATH`); that of a file system's root is the root itself. The result may have moved
    /// since this one was opened from it: compare identities.
    ///
    /// # Errors
    /// What `openat` gives.
    pub fn open_parent(&self) -> io::Result<Self> {
        let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
        Ok(Self { fd: openat(self.fd.as_raw_fd(), c"..", flags)? })
    }

    /// Another descriptor of the same directory.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// The names in it, without `.` and `..`, in the file system's order.
    ///
    /// # Errors
    /// `EACCES` where it may not be read; a faulty disk.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        // A descriptor of its own: O_PATH cannot be read, and a shared one would share its position.
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        let mut stream = Stream::new(openat(self.fd.as_raw_fd(), c".", flags)?)?;
        let mut names = Vec::new();
        while let Some(name) = stream.next_name()? {
            if name.as_bytes() != b"." && name.as_bytes() != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// What it is now.
    ///
    /// # Errors
    /// What `fstat` gives.
    pub fn stat(&self) -> io::Result<Stat> {
        stat_at(self.fd.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
    }

    /// What the entry `name` is; a symlink is itself.
    ///
    /// # Errors
    /// What `fstatat` gives.
    pub fn stat_child(&self, name: &OsStr) -> io::Result<Stat> {
        stat_at(self.fd.as_raw_fd(), &single(name)?, libc::AT_SYMLINK_NOFOLLOW)
    }

    /// The text of the symlink `name`.
    ///
    /// # Errors
    /// `EINVAL` where it is no symlink; what `readlinkat` gives.
    pub fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        let name = single(name)?;
        // Linux bounds a link's text by PATH_MAX.
        let mut text = vec![0_u8; libc::PATH_MAX as usize];
        // SAFETY: `name` is NUL-terminated; the kernel writes at most `text.len()` bytes into `text`.
        let length =
            unsafe { libc::readlinkat(self.fd.as_raw_fd(), name.as_ptr(), text.as_mut_ptr().cast(), text.len()) };
        text.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
        Ok(OsString::from_vec(text))
    }

    /// A path by which this process reaches the descriptor itself.
    pub fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Where the kernel says the directory stands now.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn real_path(&self) -> io::Result<PathBuf> {
        std::fs::read_link(self.proc_path())
    }
}

/// Whether an error means that there is nothing at a path, or something else than a directory on the way to it.
pub fn is_absence(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP))
}

/// What an open file is.
///
/// # Errors
/// What `fstat` gives.
pub fn stat_file(file: &File) -> io::Result<Stat> {
    stat_at(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)
}

/// Whether an error says that a path leads to nothing, to something of another type, over a symlink or out.
pub fn leads_nowhere(error: &io::Error) -> bool {
    const ERRORS: [c_int; 5] = [libc::ENOENT, libc::ENOTDIR, libc::ELOOP, libc::EXDEV, libc::ENAMETOOLONG];
    error.kind() == io::ErrorKind::InvalidInput || error.raw_os_error().is_some_and(|code| ERRORS.contains(&code))
}

/// Mounts `source` onto the directory `at` privately, without its submounts, `nosuid` and `nodev`, read-only where asked.
/// Restrictions of the source's own mount (`ro`, `noexec`) are kept. `at` must be a directory of the agent's own.
///
/// # Errors
/// What `mount` gives, `EPERM` without CAP_SYS_ADMIN. Nothing stays mounted then.
pub fn bind_mount(source: &Dir, at: &Path, read_only: bool) -> io::Result<()> {
    let from = c_string(source.proc_path().as_os_str())?;
    let to = c_string(at.as_os_str())?;
    // A remount sets all flags anew: what is not repeated here would be lifted.
    let mut flags = libc::MS_NOSUID | libc::MS_NODEV | mount_flags(source)?;
    if read_only {
        flags |= libc::MS_RDONLY;
    }
    mount(Some(&from), &to, libc::MS_BIND)?;
    let restricted =
        mount(None, &to, libc::MS_PRIVATE).and_then(|()| mount(None, &to, libc::MS_BIND | libc::MS_REMOUNT | flags));
    restricted.inspect_err(|_| drop(unmount(at)))
}

/// Takes the topmost mount off `at`, at once even where it is in use; a symlink at `at` is not followed.
///
/// # Errors
/// `EINVAL` where nothing is mounted there; `EPERM`.
pub fn unmount(at: &Path) -> io::Result<()> {
    let at = c_string(at.as_os_str())?;
    // SAFETY: `at` is NUL-terminated and outlives the call.
    check(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) })
}

/// Whether this process may mount: CAP_SYS_ADMIN is in its effective set.
///
/// # Errors
/// `/proc` is not mounted.
pub fn may_mount() -> io::Result<bool> {
    /// Bit of CAP_SYS_ADMIN (capability.h).
    const CAP_SYS_ADMIN: u32 = 21;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    Ok(effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|set| set >> CAP_SYS_ADMIN & 1 == 1))
}

/// The effective user id of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// The mount points at and below `dir` (canonical), in the order they were mounted; one that is mounted over is listed twice.
///
/// # Errors
/// `/proc` is not mounted.
pub fn mounts_below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(mount_points(&table).filter(|point| point.starts_with(dir)).collect())
}

/// The fifth column of each line of mountinfo.
fn mount_points(table: &[u8]) -> impl Iterator<Item = PathBuf> {
    table.split(|&b| b == b'\n').filter_map(|line| {
        let escaped = line.split(|&b| b == b' ').nth(4)?;
        Some(PathBuf::from(OsString::from_vec(unescape(escaped))))
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits after a backslash.
pub(super) fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        if let Some(digits) = digits {
            plain.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
            rest = &tail[3..];
        } else {
            plain.push(first);
            rest = tail;
        }
    }
    plain
}

/// An open directory stream; closes itself.
struct Stream(std::ptr::NonNull<libc::DIR>);

impl Stream {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: `fd` is an open directory descriptor. On success the stream owns it, and `into_raw_fd` below gives it up.
        let stream = unsafe { libc::fdopendir(fd.as_raw_fd()) };
        let stream = std::ptr::NonNull::new(stream).ok_or_else(io::Error::last_os_error)?;
        let _: RawFd = fd.into_raw_fd();
        Ok(Self(stream))
    }

    fn next_name(&mut self) -> io::Result<Option<OsString>> {
        // SAFETY: __errno_location is this thread's errno, always valid. It is cleared because readdir64 tells its end from
        // an error only by it.
        unsafe { *libc::__errno_location() = 0 };
        // SAFETY: the stream is open, and `&mut self` keeps other readers away.
        let entry = unsafe { libc::readdir64(self.0.as_ptr()) };
        if entry.is_null() {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(0) { Ok(None) } else { Err(error) };
        }
        // SAFETY: d_name is NUL-terminated and valid until the next call on this stream; it is copied before. The pointer is
        // taken from the raw entry because the record may be shorter than the struct that libc declares.
        let name = unsafe { CStr::from_ptr(std::ptr::addr_of!((*entry).d_name).cast()) };
        Ok(Some(OsStr::from_bytes(name.to_bytes()).to_owned()))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is open and not used again.
        unsafe { libc::closedir(self.0.as_ptr()) };
    }
}

fn openat(at: RawFd, name: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    let fd = retry(|| {
        // SAFETY: `name` is NUL-terminated and outlives the call; `at` is open for as long as its Dir is borrowed.
        unsafe { libc::openat(at, name.as_ptr(), flags) }
    })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn openat2_beneath(at: RawFd, relative: &OsStr, flags: c_int, besides: u64) -> io::Result<OwnedFd> {
    let relative = c_string(relative)?;
    // SAFETY: open_how is three integers, for which zero is a value.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_SYMLINKS | libc::RESOLVE_NO_MAGICLINKS | besides;
    let fd = retry(|| {
        // SAFETY: `relative` is NUL-terminated, `how` is as large as we say, both outlive the call.
        let fd = unsafe { libc::syscall(libc::SYS_openat2, at, relative.as_ptr(), &how, size_of::<libc::open_how>()) };
        c_int::try_from(fd).unwrap_or(-1)
    })?;
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn stat_at(at: RawFd, name: &CStr, flags: c_int) -> io::Result<Stat> {
    let mut raw = std::mem::MaybeUninit::<libc::stat64>::uninit();
    // SAFETY: `name` is NUL-terminated; `raw` has room for the struct the kernel fills.
    check(unsafe { libc::fstatat64(at, name.as_ptr(), raw.as_mut_ptr(), flags) })?;
    // SAFETY: fstatat64 succeeded, so the struct is filled.
    let raw = unsafe { raw.assume_init() };
    let file_type = match raw.st_mode & libc::S_IFMT {
        libc::S_IFREG => FileType::Regular,
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::Fifo,
        libc::S_IFSOCK => FileType::Socket,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        other => return Err(io::Error::other(format!("unknown file type {other:o}"))),
    };
    #[allow(clippy::unnecessary_cast, reason = "the widths of these fields differ between architectures")]
    Ok(Stat {
        file_type,
        id: (raw.st_dev as u64, raw.st_ino as u64),
        mode: raw.st_mode & 0o7777,
        links: raw.st_nlink as u64,
        uid: raw.st_uid,
        gid: raw.st_gid,
        size: raw.st_size as u64,
        modified: (raw.st_mtime as i64, raw.st_mtime_nsec as i64),
        changed: (raw.st_ctime as i64, raw.st_ctime_nsec as i64),
    })
}

fn mount(source: Option<&CStr>, target: &CStr, flags: c_ulong) -> io::Result<()> {
    let source = source.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: both strings are NUL-terminated or null and outlive the call; type and data may be null for these flags.
    check(unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) })
}

/// The flags of the mount a directory lies on, as `mount` takes them.
fn mount_flags(dir: &Dir) -> io::Result<c_ulong> {
    let mut raw = std::mem::MaybeUninit::<libc::statvfs64>::uninit();
    // SAFETY: the descriptor is open; `raw` has room for the struct that is filled.
    check(unsafe { libc::fstatvfs64(dir.fd.as_raw_fd(), raw.as_mut_ptr()) })?;
    // SAFETY: fstatvfs64 succeeded, so the struct is filled.
    let have = unsafe { raw.assume_init() }.f_flag;
    let table = [
        (libc::ST_RDONLY, libc::MS_RDONLY),
        (libc::ST_NOEXEC, libc::MS_NOEXEC),
        (libc::ST_NOATIME, libc::MS_NOATIME),
        (libc::ST_NODIRATIME, libc::MS_NODIRATIME),
        (libc::ST_RELATIME, libc::MS_RELATIME),
    ];
    Ok(table.into_iter().filter(|(st, _)| have & st != 0).fold(0, |flags, (_, ms)| flags | ms))
}

/// `name` as a C string, where it is one component that leads neither up nor down.
fn single(name: &OsStr) -> io::Result<CString> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(io::ErrorKind::InvalidInput.into()),
        bytes if bytes.contains(&b'/') => Err(io::ErrorKind::InvalidInput.into()),
        _ => c_string(name),
    }
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes()).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a path holds a NUL byte"))
}

fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry(mut call: impl FnMut() -> c_int) -> io::Result<c_int> {
    loop {
        let result = call();
        if result != -1 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    pub(super) struct Scratch(pub(super) PathBuf);

    impl Scratch {
        pub(super) fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hackbrain-dir-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path.canonicalize().unwrap())
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn errno<T>(result: io::Result<T>) -> i32 {
        result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
    }

    #[test]
    fn nothing_leads_out_and_no_symlink_is_followed() {
        let scratch = Scratch::new("beneath");
        std::fs::create_dir_all(scratch.0.join("a/b")).unwrap();
        std::fs::write(scratch.0.join("a/file"), "x").unwrap();
        symlink("a", scratch.0.join("link")).unwrap();
        symlink("file", scratch.0.join("a/filelink")).unwrap();
        let dir = Dir::open(&scratch.0).unwrap();
        let same = dir.open_beneath(Path::new("a/b")).unwrap().stat().unwrap();
        assert_eq!(same.id, Dir::open(&scratch.0.join("a/b")).unwrap().stat().unwrap().id);
        for (path, expected) in [
            ("link", libc::ELOOP),
            ("link/b", libc::ELOOP),
            ("..", libc::EXDEV),
            ("a/../..", libc::EXDEV),
            ("/etc", libc::EXDEV),
            ("a/file", libc::ENOTDIR),
            ("a/none", libc::ENOENT),
        ] {
            assert_eq!(errno(dir.open_beneath(Path::new(path))), expected, "{path}");
        }
        assert!(dir.open_file_beneath(Path::new("a/file")).is_ok());
        assert_eq!(errno(dir.open_file_beneath(Path::new("a/filelink"))), libc::ELOOP);
        assert_eq!(errno(dir.open_child(OsStr::new("link"))), libc::ENOTDIR);
        for name in ["", ".", "..", "a/b"] {
            assert!(dir.open_child(OsStr::new(name)).is_err(), "{name:?}");
            assert!(dir.stat_child(OsStr::new(name)).is_err(), "{name:?}");
        }
        assert_eq!(
            dir.open_child(OsStr::new("a")).unwrap().open_parent().unwrap().stat().unwrap().id,
            dir.stat().unwrap().id
        );
        assert_eq!(dir.real_path().unwrap(), scratch.0);
    }

    #[test]
    fn listing_types_and_links() {
        let scratch = Scratch::new("names");
        let odd = OsStr::from_bytes(b"\xff odd\n");
        std::fs::write(scratch.0.join(odd), "four").unwrap();
        std::fs::set_permissions(scratch.0.join(odd), std::fs::Permissions::from_mode(0o4750)).unwrap();
        std::fs::create_dir(scratch.0.join("d")).unwrap();
        symlink("/nowhere", scratch.0.join("l")).unwrap();
        let socket = std::os::unix::net::UnixListener::bind(scratch.0.join("s")).unwrap();
        let dir = Dir::open(&scratch.0).unwrap();
        for _ in 0..2 {
            let mut names = dir.names().unwrap();
            names.sort();
            assert_eq!(names, [OsStr::new("d"), OsStr::new("l"), OsStr::new("s"), odd]);
        }
        let stat = dir.stat_child(odd).unwrap();
        assert_eq!((stat.file_type, stat.size, stat.mode, stat.links), (FileType::Regular, 4, 0o4750, 1));
        assert_eq!(stat_file(&dir.open_child_file(odd).unwrap()).unwrap(), stat);
        for (name, expected) in [("d", FileType::Directory), ("l", FileType::Symlink), ("s", FileType::Socket)] {
            assert_eq!(dir.stat_child(OsStr::new(name)).unwrap().file_type, expected);
        }
        assert_eq!(dir.read_link(OsStr::new("l")).unwrap(), "/nowhere");
        assert_eq!(errno(dir.read_link(OsStr::new("d"))), libc::EINVAL);
        assert_eq!(errno(dir.open_child_file(OsStr::new("l"))), libc::ELOOP);
        drop(socket);
    }

    #[test]
    fn descriptors_are_closed() {
        let scratch = Scratch::new("fds");
        let dir = Dir::open(&scratch.0).unwrap();
        // More than any limit on open files in force here would allow if one leaked.
        for _ in 0..70_000 {
            dir.names().unwrap();
        }
    }

    #[test]
    fn mountinfo_is_unescaped() {
        let table = b"36 35 98:0 / /mnt/a\\040b\\134c rw - ext3 /dev/root rw\n37 36 0:1 / /x rw - tmpfs t rw\n\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [PathBuf::from("/mnt/a b\\c"), PathBuf::from("/x")]);
        assert_eq!(unescape(b"\\04"), b"\\04");
    }

    #[test]
    fn a_bind_mount_is_restricted_listed_and_undone() {
        if !may_mount().unwrap() {
            return;
        }
        let scratch = Scratch::new("bind");
        for name in ["source", "at"] {
            std::fs::create_dir(scratch.0.join(name)).unwrap();
        }
        std::fs::write(scratch.0.join("source/f"), "x").unwrap();
        let source = Dir::open(&scratch.0.join("source")).unwrap();
        let at = scratch.0.join("at");
        assert_eq!(errno(unmount(&at)), libc::EINVAL);
        for read_only in [false, true] {
            bind_mount(&source, &at, read_only).unwrap();
            assert_eq!(mounts_below(&scratch.0).unwrap(), std::slice::from_ref(&at));
            assert_eq!(Dir::open(&at).unwrap().stat().unwrap().id, source.stat().unwrap().id);
            assert_eq!(std::fs::write(at.join("g"), "y").is_err(), read_only);
            let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let line = table.lines().find(|line| line.contains(at.to_str().unwrap())).unwrap();
            assert!(line.contains("nosuid,nodev") && !line.contains("shared:"), "{line}");
            unmount(&at).unwrap();
            assert!(mounts_below(&scratch.0).unwrap().is_empty());
        }
    }
}
