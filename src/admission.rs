//! Which manifests are let in: what this agent allows, beyond their being well-formed.

use std::sync::Arc;

use crate::lists::Shared;
use crate::manifest::{Manifest, MountSource, Network};
use crate::rejection::Rejection;
use crate::resources::{EngineCapacity, ResourceLimits};
use crate::runner::mounts::{CheckedMount, MountPolicy};

/// What this agent allows.
pub struct Admission {
    /// `--allow-image`.
    pub images: Arc<Shared<Vec<String>>>,
    /// `--allow-network`.
    pub network: bool,
    /// `--mount-root`.
    pub mounts: Arc<MountPolicy>,
    /// What there is to give.
    pub resources: Arc<ResourceLimits>,
}

impl Admission {
    /// Refuses what could only fail later. `engine` is what the container engine can give, if it has told.
    ///
    /// # Errors
    /// 400 where the host cannot do it, 403 where the agent does not allow it.
    pub fn check(&self, manifest: &Manifest, engine: Option<&EngineCapacity>) -> Result<(), Rejection> {
        let images = self.images.get();
        if !images.iter().any(|glob| glob_matches(glob, &manifest.image_hash)) {
            let message =
                format!("image {:?} is not allowed here; allowed are: {}", manifest.image_hash, images.join(", "));
            return Err(Rejection::new(403, "image_not_allowed", message).field("image_hash"));
        }
        if manifest.network == Network::Bridge && !self.network {
            let message = "this agent was started without --allow-network; leave network out, or ask its operator";
            return Err(Rejection::new(403, "network_not_allowed", message).field("network"));
        }
        self.resources.check(&manifest.resources)?;
        if let Some(engine) = engine {
            self.resources.check_engine(&manifest.resources, engine)?;
        }
        self.check_mounts(manifest)
    }

    /// Each mount by itself, and that none is written through another: what is read-only in the container, and hashed as an
    /// input, would change; what is writable would be sealed twice.
    fn check_mounts(&self, manifest: &Manifest) -> Result<(), Rejection> {
        let mut checked: Vec<(&str, bool, CheckedMount)> = Vec::new();
        for mount in &manifest.mounts {
            // What a parent has sealed is copied into a directory of the job's own.
            let MountSource::Host(path) = &mount.source else { continue };
            let dir = self.mounts.check(path)?;
            for (other, read_only, other_dir) in &checked {
                if !(mount.read_only && *read_only) && dir.overlaps(other_dir)? {
                    let message = format!(
                        "{other:?} and {path:?} are one directory, or one lies in the other, and not both are mounted \
                         read-only; mount directories apart, or the outer one alone"
                    );
                    return Err(Rejection::new(400, "mounts_overlap", message).field("mount_spec"));
                }
            }
            checked.push((path, mount.read_only, dir));
        }
        Ok(())
    }
}

/// `*` matches any characters, everything else itself.
fn glob_matches(glob: &str, text: &str) -> bool {
    let mut parts = glob.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (glob, text, matches) in [
            ("*", "anything", true),
            ("python:3.9-slim", "python:3.9-slim", true),
            ("python:3.9-slim", "python:3.9-slim-x", false),
            ("python:*", "python:3.9", true),
            ("python:*", "evil/python:3.9", false),
            ("*:3.*-slim", "python:3.9-slim", true),
            ("*:3.*-slim", "python:2.7-slim", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a**b", "ab", true),
            ("", "", true),
            ("", "x", false),
        ] {
            assert_eq!(glob_matches(glob, text), matches, "{glob} {text}");
        }
    }
}
