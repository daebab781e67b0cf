//! Query parameters, strictly: an unknown, repeated or malformed one is an error that names it. Pure.

use super::api::Parameter;
use super::request::Request;
use crate::rejection::Rejection;

/// The parameters of one request.
pub struct Query<'r>(&'r [(String, String)]);

impl<'r> Query<'r> {
    /// Takes the request's parameters if all of them are among `known`, each at most once and of its kind; where
    /// nothing is `known` they may be any, and mean nothing.
    ///
    /// # Errors
    /// 400 with the parameter's name, and what it should be.
    pub fn new(request: &'r Request, known: Option<&[Parameter]>) -> Result<Self, Rejection> {
        let Some(known) = known else { return Ok(Self(&[])) };
        for (index, (name, value)) in request.query.iter().enumerate() {
            let Some(parameter) = known.iter().find(|parameter| parameter.name == name) else {
                let names: Vec<&str> = known.iter().map(|parameter| parameter.name).collect();
                let takes = if known.is_empty() { "none".to_owned() } else { names.join(", ") };
                let message = format!("unknown query parameter {name:?}; this route takes: {takes}");
                return Err(Rejection::new(400, "unknown_parameter", message).field(name.clone()));
            };
            if request.query[..index].iter().any(|(other, _)| other == name) {
                let message = format!("query parameter {name:?} stands twice; send it once");
                return Err(Rejection::new(400, "bad_parameter", message).field(name.clone()));
            }
            if !parameter.kind.admits(value) {
                let message = format!("{name}={value:?} must be {}", parameter.kind);
                return Err(Rejection::new(400, "bad_parameter", message).field(name.clone()));
            }
        }
        Ok(Self(&request.query))
    }

    /// The text of a parameter.
    pub fn text(&self, name: &str) -> Option<&'r str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter, read; `None` as well where it is not what its kind admits, which none is that [`Query::new`] took.
    pub fn read<T>(&self, name: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        self.text(name).and_then(read)
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.read(name, |text| text.parse().ok())
    }
}
