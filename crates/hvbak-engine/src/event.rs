//! The engine's audit log and its jobs.

use hvbak_types::VmId;

use crate::{
    client::{Engine, Request},
    error::EngineError,
    inventory::optional,
    parse::{Event, Job},
    xml::Body,
};

/// An event to be shown in the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Text; long ones are cut by the engine.
    pub description: String,
    /// `normal`, `warning`, `error`, `alert`.
    pub severity: String,
    /// Who; not `oVirt`.
    pub origin: String,
    /// Unique with `origin` for ever; 31 bits, so seconds but not milliseconds.
    pub custom_id: u32,
    /// The VM it is about.
    pub vm: Option<VmId>,
}

impl Engine {
    /// Events, newest first. `search`: `correlation_id=…`, `event_vm=…`; `from`: only ids
    /// above; `max`: how many.
    ///
    /// # Errors
    /// As any request.
    pub async fn events(
        &self,
        search: Option<&str>,
        from: Option<u64>,
        max: Option<u32>,
    ) -> Result<Vec<Event>, EngineError> {
        let mut request = Request::get("/events", "reading events");
        if let Some(search) = search {
            request = request.query("search", search);
        }
        if let Some(from) = from {
            request = request.query("from", from.to_string());
        }
        if let Some(max) = max {
            request = request.query("max", max.to_string());
        }
        self.send(request).await?.list()
    }

    /// When engine-backup last ended well, by the names of the API's element `engine_backup`
    /// (4.5.7 and newer, for administrators; else empty).
    ///
    /// # Errors
    /// As any request.
    pub async fn backup_dates(
        &self,
        names: &[&'static str],
    ) -> Result<Vec<(&'static str, jiff::Timestamp)>, EngineError> {
        let root = self.send(Request::get("", "reading the dates of backups")).await?.element()?;
        let Some(dates) = root.child("engine_backup") else { return Ok(Vec::new()) };
        Ok(names.iter().filter_map(|name| Some((*name, dates.time(name)?))).collect())
    }

    /// Shows an event in the engine. Never attaches hosts or domains, whose state a foreign
    /// event could change.
    ///
    /// # Errors
    /// `Forbidden` without the permit `inject_external_events`; `Fault` 400 when the pair of
    /// origin and id was used before.
    pub async fn post_event(&self, event: &NewEvent) -> Result<(), EngineError> {
        let body = Body::default()
            .nest("event", &[], |b| {
                b.text("description", &event.description)
                    .text("severity", &event.severity)
                    .text("origin", &event.origin)
                    .text("custom_id", &(event.custom_id & 0x7fff_ffff).to_string())
                    .reference("vm", event.vm)
            })
            .finish();
        self.send(Request::post("/events", body, "posting an event")).await.map(drop)
    }

    /// Jobs of a correlation id. None is normal: finished jobs vanish after minutes.
    ///
    /// # Errors
    /// As any request.
    pub async fn jobs(&self, correlation: &str) -> Result<Vec<Job>, EngineError> {
        let request = Request::get("/jobs", "reading jobs")
            .query("search", format!("correlation_id={correlation}"));
        match self.send(request).await {
            Ok(answer) => answer.list(),
            Err(error) => optional(Err(error)),
        }
    }
}
