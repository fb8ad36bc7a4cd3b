//! The contract of loss: every probe counts what it saw, what it recorded, and what it dropped and why.
//!
//! Each number is counted where it happens, so that `seen = recorded + Σ dropped (+ in flight)` can fail, and is tested.

/// What a probe saw: requests whose head was read, connections opened, switches, …
pub const SEEN: u32 = 0;
/// What went into a cell.
pub const RECORDED: u32 = 1;
/// The first of the reasons; `DROPPED + Reason as u32` counts one.
pub const DROPPED: u32 = 2;

/// Why an event that was seen is in no cell.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The map of cells is full, and so is its `other` cell.
    MapFull = 0,
    /// More than eight requests were waiting for their responses on one connection.
    PipelineDepth = 1,
    /// The connection ended before its response did.
    NoResponse = 2,
    /// A response for which no request was seen.
    NoRequest = 3,
    /// The bytes that follow a request are no response, or framing was lost between pipelined ones.
    Desync = 4,
    /// The connection became a tunnel or the bytes could not be read, with requests still waiting.
    Opaque = 5,
}

/// Every reason with its label, in the order of its counter.
pub const REASONS: [(Reason, &str); 6] = [
    (Reason::MapFull, "map_full"),
    (Reason::PipelineDepth, "pipeline_depth"),
    (Reason::NoResponse, "no_response"),
    (Reason::NoRequest, "no_request"),
    (Reason::Desync, "desync"),
    (Reason::Opaque, "opaque"),
];

/// How many counters a probe keeps.
pub const COUNTERS: u32 = DROPPED + REASONS.len() as u32;
