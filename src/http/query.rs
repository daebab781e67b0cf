//! Query parameters, strictly: an unknown, repeated or malformed one is an error that names it. Pure.

use std::str::FromStr;

use super::request::Request;
use crate::rejection::Rejection;

/// The parameters of one request.
pub struct Query<'r>(&'r [(String, String)]);

impl<'r> Query<'r> {
    /// Takes the request's parameters if all of them are among `known`, each at most once.
    ///
    /// # Errors
    /// 400 with the parameter's name.
    pub fn new(request: &'r Request, known: &[&str]) -> Result<Self, Rejection> {
        for (index, (name, _)) in request.query.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let takes = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let message = format!("unknown query parameter {name:?}; this route takes: {takes}");
                return Err(Rejection::new(400, "unknown_parameter", message).field(name.clone()));
            }
            if request.query[..index].iter().any(|(other, _)| other == name) {
                let message = format!("query parameter {name:?} stands twice; send it once");
                return Err(Rejection::new(400, "bad_parameter", message).field(name.clone()));
            }
        }
        Ok(Self(&request.query))
    }

    /// The text of a parameter.
    pub fn text(&self, name: &str) -> Option<&'r str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A parameter read by `read`; `wanted` says what it should be.
    ///
    /// # Errors
    /// 400 with the parameter's name and what it should be.
    pub fn read<T>(&self, name: &str, wanted: &str, read: impl Fn(&str) -> Option<T>) -> Result<Option<T>, Rejection> {
        let Some(text) = self.text(name) else { return Ok(None) };
        read(text).map(Some).ok_or_else(|| {
            Rejection::new(400, "bad_parameter", format!("{name}={text:?} must be {wanted}")).field(name)
        })
    }

    /// A number of at least 0.
    ///
    /// # Errors
    /// 400 with the parameter's name.
    pub fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>, Rejection> {
        self.read(name, "a whole number", |text| {
            text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
        })
    }
}
