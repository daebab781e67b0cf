//! The caller's mistakes: what HTTP answers with a 4xx (or 503), never a fault of the ledger.

use std::fmt;

/// A refused request. The message says what to change, so that a person who reads it can act on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// HTTP status, 400 to 599.
    pub status: u16,
    /// Stable identifier in lower snake case, e.g. `unknown_field`; part of the contract.
    pub code: &'static str,
    /// One sentence for a person: what is wrong and what to change.
    pub message: String,
    /// The manifest field, query parameter or header at fault, where there is one.
    pub field: Option<String>,
}

impl Rejection {
    /// A rejection that concerns no single field.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), field: None }
    }

    /// Names the field at fault.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    /// The same of a part of the request, such as `jobs[3]`: names it in the message and in the field.
    #[must_use]
    pub fn within(mut self, part: &str) -> Self {
        self.message = format!("{part}: {}", self.message);
        self.field = Some(self.field.map_or_else(|| part.to_owned(), |field| format!("{part}.{field}")));
        self
    }

    /// The error body of the contract: `{"error":{"code","message","field"}}`; `field` is null where none is at fault.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::json!({ "error": { "code": self.code, "message": self.message, "field": self.field } })
            .to_string()
            .into_bytes()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)
    }
}

impl std::error::Error for Rejection {}
