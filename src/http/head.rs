//! The size limit of a head. hyper itself answers larger heads with a bare 431, before there is a request.

use axum::http::Request;

/// The maximum size of target and headers, in bytes. Svix's requests have about 600.
pub(super) const MAX_BYTES: usize = 16 * 1024;

pub(super) fn is_too_large<B>(request: &Request<B>) -> bool {
    let headers: usize =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    headers + target > MAX_BYTES
}
