//! Parsers and checks for values, shared by variables and the sinks file.

use std::{fs, net::IpAddr};

use ipnet::IpNet;
use url::{Host, Url};

use super::mistake::{shown, unreadable};
use crate::{clerk::signature::Secret, model::Field};

/// PostgreSQL truncates longer names.
const MAX_NAME_BYTES: usize = 63;

/// The error for a secret that cannot be sent in a header.
pub(super) const NO_HEADER: &str =
    "that cannot be sent in an HTTP header; allowed: visible ASCII characters without spaces";

/// The elements of a list, separated by commas or white space. Empty elements are skipped.
pub(super) fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| character == ',' || character.is_whitespace())
        .filter(|element| !element.is_empty())
}

/// The allowed elements, and the error for the others or for an empty list.
pub(super) fn elements<'a, T>(
    given: impl Iterator<Item = &'a str>,
    nothing: &str,
    allowed: &str,
    read: impl Fn(&str) -> Option<T>,
) -> (Vec<T>, Option<String>) {
    let (mut elements, mut unknown) = (Vec::new(), Vec::new());
    for element in given {
        match read(element) {
            Some(element) => elements.push(element),
            None => unknown.push(shown(element)),
        }
    }
    if elements.is_empty() && unknown.is_empty() {
        unknown.push(nothing.to_owned());
    }
    let refusal = format!("found {}; allowed: {allowed}", unknown.join(", "));
    (elements, (!unknown.is_empty()).then_some(refusal))
}

/// The signing secrets of a list, and the errors for those that cannot be used.
pub(super) fn signing_secrets(text: &str, allowed: &str, may_be_weak: bool) -> (Vec<Secret>, Vec<String>) {
    let parts: Vec<&str> = list(text).collect();
    let (mut secrets, mut refusals) = (Vec::new(), Vec::new());
    for (place, part) in parts.iter().enumerate() {
        let refusal = match Secret::parse(part) {
            Ok(secret) if may_be_weak || !secret.is_weak() => {
                secrets.push(secret);
                continue;
            }
            Ok(_) => "it has fewer than 16 bytes and can be guessed; Clerk's have 24".to_owned(),
            Err(error) => error.to_string(),
        };
        let (place, all) = (place + 1, parts.len());
        refusals.push(format!("secret {place} of {all} cannot be used: {refusal}; allowed: {allowed}"));
    }
    if parts.is_empty() {
        refusals.push("found no secret between the commas".to_owned());
    }
    (secrets, refusals)
}

/// Reads a secret from a file. Messages contain only the `shown` form of the path.
pub(super) fn secret_in(path: &str, shown: &str) -> Result<String, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("the file {shown} cannot be read: {}", unreadable(&error)))?;
    match text.trim() {
        "" => Err(format!("the file {shown} is empty")),
        text => Ok(text.to_owned()),
    }
}

/// A network or a single address.
pub(super) fn network(text: &str) -> Option<IpNet> {
    let network = text.parse().ok().or_else(|| text.parse().map(|address: IpAddr| address.into()).ok());
    network.map(|network: IpNet| network.trunc())
}

/// A name that a database accepts and that we can quote.
pub(super) fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && !text.contains(|character: char| matches!(character, '"' | '\'' | '`') || character.is_control())
}

pub(super) fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// The id of a Clerk instance, or `any`.
pub(super) fn is_instance(text: &str) -> bool {
    let id = text.strip_prefix("ins_").filter(|id| !id.is_empty());
    let fits = |id: &str| id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    text == "any" || id.is_some_and(fits)
}

/// Whether requests to this URL stay on this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical().is_loopback(),
        None => false,
    }
}

pub(super) fn joined(fields: impl Iterator<Item = Field>, separator: &str) -> String {
    fields.map(Field::name).collect::<Vec<_>>().join(separator)
}
