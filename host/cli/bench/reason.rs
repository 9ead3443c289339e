//! The reason of a failed operation: that of its status's details, or the status code.

use bytes::Bytes;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use witan_wire::v1::SessionStatus;

use super::super::client;

/// The reason.
pub(super) fn of_status(status: &Status) -> String {
    let reason = status.get_details_error_info().map(|info| info.reason).filter(|reason| !reason.is_empty());
    reason.unwrap_or_else(|| client::code(status.code()).to_owned())
}

/// True when the failure says that the key has no value, which is a successful read.
pub(super) fn is_missing_key(status: &Status) -> bool {
    status.code() == Code::NotFound && of_status(status) == "KEY_NOT_FOUND"
}

/// The most bytes of details that are decoded: as many as the headers that carry those of a call. They are messages of another package,
/// which are not weighed.
const DETAILS_BYTES: usize = 16 << 10;

/// The status in a session's response.
pub(super) fn status(status: SessionStatus) -> Status {
    let details = if status.details.len() <= DETAILS_BYTES { status.details } else { Bytes::new() };
    Status::with_details(Code::from_i32(status.code), status.message, details)
}
