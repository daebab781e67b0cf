//! `POST /api/jobs/{id}/reproduce`: the same execution once more, as a new job.

use serde_json::{Map, Value, json};

use super::api::Call;
use super::routes::{Answer, App};
use crate::ledger::event::State;
use crate::manifest::{self, Manifest, Parsed};
use crate::rejection::Rejection;
use crate::resources::EngineCapacity;

impl App {
    pub(super) fn reproduce(&self, call: &Call<'_>) -> Answer {
        let id = call.id;
        let wanted = wanted_id(&call.request.body)?;
        let job = self.find(id)?;
        let image_id = job.image_id.clone().filter(|_| job.state == State::Sealed).ok_or_else(|| {
            let message = format!("job {id:?} is {}; only SEALED jobs can be reproduced", job.state);
            Rejection::new(409, "not_sealed", message)
        })?;
        let original = self.received(id)?;
        let parsed_as = |job_id: &str| -> Result<Parsed, Rejection> {
            let unreadable = |error: &dyn std::fmt::Display| {
                Rejection::new(500, "unreadable", format!("the job's manifest cannot be read back: {error}"))
            };
            let mut manifest: Value = serde_json::from_str(original.get()).map_err(|error| unreadable(&error))?;
            manifest["job_id"] = job_id.into();
            // The same image, whatever its name means now.
            manifest["image_hash"] = (*image_id).into();
            manifest["reproduces"] = id.into();
            manifest::parse(manifest.to_string().as_bytes())
        };
        if let Some(job_id) = wanted {
            return self.accept(parsed_as(&job_id)?).map(|(reply, _)| reply);
        }
        let mut number = 0_u64;
        loop {
            number += 1;
            let job_id = format!("{id}.r{number}");
            if !manifest::is_job_id(&job_id) {
                let message = format!("{job_id:?} would be too long; give a job_id of at most 100 characters");
                return Err(Rejection::new(400, "invalid_value", message).field("job_id"));
            }
            if self.engine.view().job(&job_id).is_some() {
                continue;
            }
            match self.accept(parsed_as(&job_id)?) {
                // Somebody was faster: theirs is not what was asked for here.
                Ok((_, false)) => {}
                Err(rejection) if rejection.code == "job_exists" => {}
                answer => return answer.map(|(reply, _)| reply),
            }
        }
    }

    /// Refuses what this agent does not allow, and what cannot be what it says it is.
    pub(super) fn admit(&self, manifest: &Manifest) -> Result<(), Rejection> {
        self.admit_on(manifest, self.runner.capacity_for(&manifest.resources).as_ref())
    }

    /// The same, with what the engine can give.
    pub(super) fn admit_on(&self, manifest: &Manifest, engine: Option<&EngineCapacity>) -> Result<(), Rejection> {
        let mut asked = manifest.clone();
        if let Some(name) = self.image_name(manifest)? {
            asked.image_hash = name;
        }
        self.admission.check(&asked, engine)
    }

    /// The name under which the image of a reproduction was let in, where it gives the id that this name meant.
    fn image_name(&self, manifest: &Manifest) -> Result<Option<String>, Rejection> {
        let mut of = manifest.reproduces.clone();
        // A reproduction's original may be one itself; the first of them has a name. None comes twice: each was sealed
        // before the next was received.
        while let Some(job) = of.take().and_then(|id| self.engine.view().job(&id)) {
            if job.image_id.as_deref() != Some(&manifest.image_hash) {
                break;
            }
            if *job.image_hash != *manifest.image_hash {
                return Ok(Some(job.image_hash.to_string()));
            }
            of = manifest::parse(self.received(&job.job_id)?.get().as_bytes())?.manifest.reproduces;
        }
        Ok(None)
    }
}

/// `{}`, nothing, or `{"job_id":"…"}`.
fn wanted_id(body: &[u8]) -> Result<Option<String>, Rejection> {
    let object = small_object(body, &["job_id"], "send {} or {\"job_id\":\"…\"}")?;
    match object.get("job_id") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(id)) => Ok(Some(id.clone())),
        Some(other) => {
            let message = format!("`job_id` is {}; it must be a string", json!(other));
            Err(Rejection::new(400, "wrong_type", message).field("job_id"))
        }
    }
}

/// A body that may be left out, or be an object of `known` members; `expected` says so.
pub(super) fn small_object(body: &[u8], known: &[&str], expected: &str) -> Result<Map<String, Value>, Rejection> {
    let body = if body.trim_ascii().is_empty() { b"{}" } else { body };
    let object = match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return Err(Rejection::new(400, "not_an_object", format!("the body is no JSON object; {expected}"))),
        Err(error) => {
            return Err(Rejection::new(400, "not_json", format!("the body is no JSON ({error}); {expected}")));
        }
    };
    if let Some(other) = object.keys().find(|name| !known.contains(&name.as_str())) {
        let message = format!("there is no field {other:?} here; {expected}");
        return Err(Rejection::new(400, "unknown_field", message).field(other.as_str()));
    }
    Ok(object)
}
