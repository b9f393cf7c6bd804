//! Refusals in the engine's shapes.

use crate::xml::escape;

/// Why a request is not carried out.
#[derive(Debug, Clone)]
pub enum Refusal {
    /// 404 with an empty body.
    NotFound,
    /// A fault with status, reason and detail.
    Fault(u16, &'static str, String),
}

impl Refusal {
    /// 409, the engine's answer to locks and wrong states.
    pub fn conflict(detail: impl Into<String>) -> Self {
        Self::Fault(409, "Operation Failed", detail.into())
    }

    /// 400 for a request that makes no sense.
    pub fn bad(reason: &'static str, detail: impl Into<String>) -> Self {
        Self::Fault(400, reason, detail.into())
    }

    /// Status and body; an action wraps its fault.
    pub fn answer(&self, action: bool) -> (u16, String) {
        match self {
            Self::NotFound => (404, String::new()),
            Self::Fault(status, reason, detail) => {
                let fault = format!(
                    "<fault><detail>[{}]</detail><reason>{reason}</reason></fault>",
                    escape(detail)
                );
                let body = if action {
                    format!("<action>{fault}<status>failed</status></action>")
                } else {
                    fault
                };
                (*status, body)
            }
        }
    }
}
