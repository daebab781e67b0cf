//! Which manifests are let in: what this agent allows, beyond their being well-formed.

use std::sync::Arc;

use crate::host::Host;
use crate::manifest::{Manifest, MountSource, Network};
use crate::rejection::Rejection;
use crate::runner::mounts::{CheckedMount, MountPolicy};

/// What this agent allows.
pub struct Admission {
    /// `--allow-image`.
    pub images: Vec<String>,
    /// `--allow-network`.
    pub network: bool,
    /// `--mount-root`.
    pub mounts: Arc<MountPolicy>,
    /// What there is to give.
    pub host: Host,
}

impl Admission {
    /// Refuses what could only fail later.
    ///
    /// # Errors
    /// 400 where the host cannot do it, 403 where the agent does not allow it.
    pub fn check(&self, manifest: &Manifest) -> Result<(), Rejection> {
        if !self.images.iter().any(|glob| glob_matches(glob, &manifest.image_hash)) {
            let message =
                format!("image {:?} is not allowed here; allowed are: {}", manifest.image_hash, self.images.join(", "));
            return Err(Rejection::new(403, "image_not_allowed", message).field("image_hash"));
        }
        if manifest.network == Network::Bridge && !self.network {
            let message = "this agent was started without --allow-network; leave network out, or ask its operator";
            return Err(Rejection::new(403, "network_not_allowed", message).field("network"));
        }
        self.check_resources(manifest)?;
        if !manifest.depends_on.is_empty() {
            return Err(unsupported("depends_on", "submit the job once its parents are SEALED"));
        }
        self.check_mounts(manifest)
    }

    /// Each mount by itself, and that none is written through another: what is read-only in the container, and hashed as an
    /// input, would change; what is writable would be sealed twice.
    fn check_mounts(&self, manifest: &Manifest) -> Result<(), Rejection> {
        let mut checked: Vec<(&str, bool, CheckedMount)> = Vec::new();
        for mount in &manifest.mounts {
            let MountSource::Host(path) = &mount.source else {
                return Err(unsupported("mount_spec", "mount a directory of the host"));
            };
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

    fn check_resources(&self, manifest: &Manifest) -> Result<(), Rejection> {
        let asked = &manifest.resources;
        let refuse = |field: &str, message: String| {
            Err(Rejection::new(400, "resources_exceed_host", message).field(format!("resources.{field}")))
        };
        if let Some(cpus) = asked.cpus.filter(|cpus| *cpus > f64::from(self.host.cpus)) {
            return refuse("cpus", format!("{cpus} CPUs were asked for; this host has {}", self.host.cpus));
        }
        if let Some(memory) = asked.memory_mib.filter(|memory| *memory > self.host.memory_mib) {
            return refuse(
                "memory_mib",
                format!("{memory} MiB were asked for; this host has {}", self.host.memory_mib),
            );
        }
        match asked.gpus {
            Some(gpus) if gpus > 0 => Err(unsupported("resources.gpus", "leave it out")),
            _ => Ok(()),
        }
    }
}

fn unsupported(field: &str, instead: &str) -> Rejection {
    Rejection::new(400, "not_supported", format!("this version cannot do this yet; {instead}")).field(field)
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
