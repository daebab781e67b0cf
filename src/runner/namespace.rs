//! Whether the engine sees what the agent has bound for it.
//!
//! It does not where the two live in different mount namespaces and nothing leads from one to the other, as options such as
//! systemd's `ProtectSystem=` or `PrivateTmp=` make it. The payload would then work in an empty directory below `DATA/mnt`
//! instead of the user's, without a word from anybody.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::mounts::BoundMount;

/// Looks at each mount with the eyes of the engine, the process `engine`. What cannot be looked at, as without the right to,
/// tells nothing.
///
/// # Errors
/// What to change, where the engine sees something else.
pub(super) fn check_seen(engine: u32, bound: &[BoundMount]) -> Result<(), String> {
    let root = Path::new("/proc").join(engine.to_string()).join("root");
    if fs::metadata(&root).is_err() {
        return Ok(());
    }
    for mount in bound {
        let Ok(ours) = fs::metadata(&mount.path) else { continue };
        let relative = mount.path.strip_prefix("/").unwrap_or(&mount.path);
        let same = match fs::metadata(root.join(relative)) {
            Ok(theirs) => (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()),
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        };
        // An engine that has ended meanwhile sees nothing at all.
        if !same && fs::metadata(&root).is_ok() {
            return Err(format!(
                "the engine does not see what the agent mounts at {:?}: they live in different mount namespaces; run the \
                 agent without options that give it one of its own (systemd's ProtectSystem=, PrivateTmp= and their like)",
                mount.path
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_of_the_same_namespace_sees_what_we_see() {
        let own = std::process::id();
        let mount = |path: &str| [BoundMount { path: path.into(), read_only: false }];
        assert_eq!(check_seen(own, &mount("/proc")), Ok(()));
        assert_eq!(check_seen(own, &mount("/nowhere")), Ok(()), "what is not there cannot be compared");
        assert_eq!(check_seen(u32::MAX, &mount("/proc")), Ok(()), "there is no such process");
    }
}
