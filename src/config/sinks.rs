//! `clerk-sync.toml`: the systems to notify, and the fields that each may receive.
//!
//! The file is read key by key. Derived code would stop at the first error and quote its line, which may contain a
//! secret. The file itself contains no secrets, only the names of variables or files that hold them.

use std::{
    collections::BTreeSet,
    fmt,
    num::NonZeroU32,
    ops::{Range, RangeInclusive},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use toml::{Table, Value, de::DeTable};
use url::Url;

use super::{
    mistake::{Mistake, shown},
    values::{NO_HEADER, elements, is_loopback, is_visible, joined, secret_in, signing_secrets},
};
use crate::{
    clerk::signature::Secret,
    entity::{USER, user},
    model::{Field, FieldSet, MessageType, Selection, Subscription},
};

/// The file that is read if no setting names one.
pub(super) const DEFAULT_FILE: &str = "clerk-sync.toml";

/// Stand-in for an unknown address.
const STAND_IN: &str = "https://localhost";

/// The destination name of clerk-sync's own database, so a sink cannot have it.
const DATABASE: &str = "database";

const MAX_NAME_BYTES: usize = 40;

const KINDS: [&str; 3] = ["webhook", "segment", "mailchimp"];

/// The fields that Mailchimp can store. Other fields are not sent, and their changes cause no message.
const MAILCHIMP_FIELDS: [Field; 3] = [user::EMAIL, user::FIRST_NAME, user::LAST_NAME];

/// The statuses that a new contact can get.
const MAILCHIMP_STATUSES: [&str; 4] = ["transactional", "pending", "subscribed", "unsubscribed"];

/// The number of parallel requests that Mailchimp accepts.
const MAILCHIMP_CONNECTIONS: u32 = 10;

/// A system that clerk-sync notifies.
#[derive(Clone)]
pub struct SinkConfig {
    pub name: String,
    pub kind: SinkKind,
    /// The messages it receives. It also receives the deletion of every user that it was ever sent.
    pub events: Vec<MessageType>,
    /// The fields it may receive, always a subset of the synced fields.
    pub fields: Selection,
    /// The time limit for the delivery of one message.
    pub timeout: Duration,
    /// The number of messages delivered in parallel.
    pub concurrency: usize,
    /// The maximum number of messages per second.
    pub rate: Option<NonZeroU32>,
    /// The number of attempts before a message is dead.
    pub attempts: u32,
}

/// The kind of system, with its specific settings.
#[derive(Clone)]
pub enum SinkKind {
    Webhook(Webhook),
    Segment(Segment),
    Mailchimp(Mailchimp),
}

/// Any HTTP endpoint.
#[derive(Clone)]
pub struct Webhook {
    pub url: Url,
    pub secrets: Vec<Secret>,
}

/// Segment, or a server that is compatible with it.
#[derive(Clone)]
pub struct Segment {
    pub url: Url,
    pub write_key: SecretString,
    pub regulations: Regulations,
}

/// The API that erases users from Segment.
#[derive(Clone)]
pub struct Regulations {
    pub url: Url,
    pub token: SecretString,
    /// For `RudderStack`: the destinations to erase from; all if the list is empty. `None` for Segment.
    pub rudderstack: Option<Vec<String>>,
}

/// A Mailchimp audience.
#[derive(Clone)]
pub struct Mailchimp {
    /// `None` only if the address is part of a key that the command does not need.
    pub url: Option<Url>,
    pub api_key: SecretString,
    pub list_id: String,
    pub status_if_new: String,
    pub tags: Vec<String>,
    pub clerk_id_merge_field: String,
}

impl SinkConfig {
    /// Its subscription, as the rules need it.
    pub fn subscription(&self) -> Subscription {
        Subscription { sink: self.name.clone(), events: self.events.clone(), fields: self.fields.clone() }
    }

    /// A hash that identifies the system. If it changes for one name, earlier messages went to another system.
    pub fn address(&self) -> String {
        let parts = match &self.kind {
            SinkKind::Webhook(webhook) => vec![webhook.url.as_str()],
            SinkKind::Segment(segment) => {
                vec![
                    segment.url.as_str(),
                    segment.regulations.url.as_str(),
                    segment.write_key.expose_secret(),
                ]
            }
            SinkKind::Mailchimp(mailchimp) => {
                vec![mailchimp.url.as_ref().map_or("", Url::as_str), &mailchimp.list_id]
            }
        };
        // No part contains a line break.
        let digest = Sha256::digest(format!("{}\n{}", self.kind.name(), parts.join("\n")));
        hex::encode(&digest[..8])
    }

    /// The host, without anything that might be a secret.
    pub fn host(&self) -> &str {
        let url = match &self.kind {
            SinkKind::Webhook(webhook) => Some(&webhook.url),
            SinkKind::Segment(segment) => Some(&segment.url),
            SinkKind::Mailchimp(mailchimp) => mailchimp.url.as_ref(),
        };
        url.and_then(Url::host_str).unwrap_or("api.mailchimp.com")
    }
}

impl SinkKind {
    /// The public name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Webhook(_) => "webhook",
            Self::Segment(_) => "segment",
            Self::Mailchimp(_) => "mailchimp",
        }
    }
}

impl fmt::Debug for SinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SinkConfig({} {}, redacted)", self.name, self.kind.name())
    }
}

/// The file's name as it may be shown. The variable may contain a secret by mistake.
pub(super) fn shown_path(path: &str) -> String {
    if shown(path).starts_with('"') {
        path.to_owned()
    } else {
        "(a name that looks like a secret)".to_owned()
    }
}

/// The context for reading a file.
pub(super) struct Source<'a> {
    /// The file's name as it may be shown.
    pub(super) file: &'a str,
    pub(super) selection: &'a Selection,
    pub(super) need_secrets: bool,
    /// Looks up a variable in the environment.
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Source<'_> {
    pub(super) fn read(&self, text: &str, mistakes: &mut Vec<Mistake>) -> Vec<SinkConfig> {
        let mut mistake =
            |explanation| mistakes.push(Mistake { variable: self.file.to_owned(), explanation });
        let table: Table = match text.parse() {
            Ok(table) => table,
            Err(error) => {
                // The errors quote their lines, so only line numbers are reported.
                let (_, errors) = DeTable::parse_recoverable(text);
                let line = |span: Range<usize>| 1 + text[..span.start].matches('\n').count();
                let spans = errors.iter().chain([&error]).filter_map(toml::de::Error::span);
                let lines: BTreeSet<usize> = spans.map(line).collect();
                if lines.is_empty() {
                    mistake("it is not TOML".to_owned());
                }
                for line in lines {
                    mistake(format!("line {line} is not TOML, or names something twice"));
                }
                return Vec::new();
            }
        };
        for key in table.keys().filter(|key| *key != "sink") {
            mistake(format!("found {}; allowed: only [[sink]]", shown(key)));
        }
        let given = match table.get("sink") {
            None => return Vec::new(),
            Some(Value::Array(given)) => given.as_slice(),
            Some(other) => std::slice::from_ref(other),
        };
        if !table["sink"].is_array() || !given.iter().all(Value::is_table) {
            mistake("found a sink that is not a separate table; allowed: [[sink]]".to_owned());
        }
        let (mut sinks, mut names) = (Vec::new(), Vec::new());
        for (place, table) in given.iter().filter_map(Value::as_table).enumerate() {
            let place = format!(", sink {}", place + 1);
            let mut keys = Keys { source: self, table, place, known: BTreeSet::new(), mistakes };
            let name = keys.name();
            if let Some(name) = &name
                && names.contains(name)
            {
                keys.mistake("name", "another sink has this name; allowed: a unique name");
            }
            sinks.extend(keys.sink(name.clone().unwrap_or_default()));
            names.extend(name);
        }
        sinks
    }
}

/// The keys of one sink. For a key with an error a stand-in is returned.
struct Keys<'a> {
    source: &'a Source<'a>,
    table: &'a Table,
    /// Which sink, for error messages.
    place: String,
    /// The keys that were read.
    known: BTreeSet<String>,
    mistakes: &'a mut Vec<Mistake>,
}

impl Keys<'_> {
    /// The sink's name. Later errors use it.
    fn name(&mut self) -> Option<String> {
        let allowed = format!(
            "a name of 1 to {MAX_NAME_BYTES} characters of a-z, 0-9 and -, except {DATABASE}, which clerk-sync uses"
        );
        self.require("name", &allowed);
        let name = self.text("name", &allowed, is_name)?;
        self.place = format!(", sink \"{name}\"");
        Some(name)
    }

    /// The rest. `None` if the kind is unknown, because then the allowed keys are unknown too.
    fn sink(&mut self, name: String) -> Option<SinkConfig> {
        self.require("kind", &format!("one of {}", KINDS.join(", ")));
        let kind = self.one_of("kind", &KINDS);
        let is_mailchimp = kind == Some("mailchimp");
        let events = self.events(kind);
        let fields = self.fields(is_mailchimp);
        let timeout = self.timeout();
        let most = if is_mailchimp { MAILCHIMP_CONNECTIONS } else { 64 };
        let concurrency = self.number("concurrency", 1..=most);
        let rate = self.number("rate", 1..=10_000).and_then(NonZeroU32::new);
        let attempts = self.number("attempts", 1..=1000);
        let kind = match kind? {
            "webhook" => SinkKind::Webhook(self.webhook()),
            "segment" => SinkKind::Segment(self.segment()),
            _ => SinkKind::Mailchimp(self.mailchimp()),
        };
        self.refuse_unknown();
        Some(SinkConfig {
            name,
            kind,
            events,
            fields,
            timeout,
            concurrency: concurrency.unwrap_or(4) as usize,
            rate,
            attempts: attempts.unwrap_or(15),
        })
    }

    fn webhook(&mut self) -> Webhook {
        let url = self.url("url", None, true);
        let allowed = "whsec_ and base64, several separated by commas or spaces";
        let text = self.secret("signing_secret");
        let (secrets, refusals) =
            text.map_or_else(Default::default, |text| signing_secrets(&text, allowed, true));
        for refusal in refusals {
            self.mistake("signing_secret", refusal);
        }
        Webhook { url, secrets }
    }

    fn segment(&mut self) -> Segment {
        let url = self.url("url", Some("https://api.segment.io"), false);
        let write_key = self.token("write_key");
        let is_rudderstack = self.one_of("regulations", &["segment", "rudderstack"]) == Some("rudderstack");
        let default =
            if is_rudderstack { "https://api.rudderstack.com" } else { "https://api.segmentapis.com" };
        let regulations = Regulations {
            url: self.url("regulations_url", Some(default), false),
            token: self.token("regulations_token"),
            rudderstack: is_rudderstack.then(|| self.names("destinations").unwrap_or_default()),
        };
        Segment { url, write_key, regulations }
    }

    fn mailchimp(&mut self) -> Mailchimp {
        let api_key = self.secret("api_key");
        let derived = api_key.as_deref().and_then(address_of_key);
        let given = self.table.contains_key("url") || derived.is_some();
        if api_key.is_some() && !given {
            self.mistake(
                "api_key",
                "it does not end with a data centre, such as -us21; set url to the address of the account",
            );
        }
        let url = self.url("url", Some(derived.as_deref().unwrap_or("https://api.mailchimp.com")), false);
        let allowed = "the id of an audience, such as a1b2c3d4e5";
        self.require("list_id", allowed);
        let list_id = self.text("list_id", allowed, |text| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
        });
        let status = self.one_of("status_if_new", &MAILCHIMP_STATUSES);
        let tags = self.names("tags").unwrap_or_else(|| vec!["new-user".to_owned()]);
        let merge_field = self.text("clerk_id_merge_field", "a merge tag such as CLERKID", |text| {
            (1..=10).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
                && !["FNAME", "LNAME", "EMAIL"].contains(&text)
        });
        Mailchimp {
            url: given.then_some(url),
            api_key: api_key.unwrap_or_default().into(),
            list_id: list_id.unwrap_or_default(),
            status_if_new: status.unwrap_or(MAILCHIMP_STATUSES[0]).to_owned(),
            tags,
            clerk_id_merge_field: merge_field.unwrap_or_else(|| "CLERKID".to_owned()),
        }
    }

    /// Systems that know only people receive messages about users only.
    fn events(&mut self, kind: Option<&str>) -> Vec<MessageType> {
        let knows_all = kind.is_none_or(|kind| kind == "webhook");
        let kinds = self.source.selection.entities().filter(|entity| knows_all || **entity == USER);
        let types: Vec<MessageType> = kinds.flat_map(MessageType::of).collect();
        let allowed = types.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
        let named = |name: &str| types.iter().copied().find(|kind| kind.name() == name);
        match self.list("events", &allowed, named) {
            None => types,
            Some(chosen) => types.into_iter().filter(|kind| chosen.contains(kind)).collect(),
        }
    }

    /// The list names fields of users. For other kinds a system receives all synced fields.
    fn fields(&mut self, is_mailchimp: bool) -> Selection {
        let synced = self.source.selection.fields(&USER).of(&USER);
        let may: FieldSet =
            synced.filter(|field| !is_mailchimp || MAILCHIMP_FIELDS.contains(field)).collect();
        let whose =
            if is_mailchimp { "Mailchimp can store and SYNC_FIELDS names" } else { "are SYNC_FIELDS" };
        let allowed = format!("{}, which {whose}", joined(may.of(&USER), ", "));
        let named = |name: &str| USER.named(name).filter(|field| may.contains(*field));
        let chosen = self.list("fields", &allowed, named);
        let chosen = chosen.map_or(may, |chosen| chosen.into_iter().collect());
        if is_mailchimp && !chosen.contains(user::EMAIL) {
            self.mistake(
                "fields",
                "email is missing, but Mailchimp identifies people by it; name it here and in SYNC_FIELDS",
            );
        }
        self.source.selection.clone().with(&USER, chosen)
    }

    fn timeout(&mut self) -> Duration {
        // With the time for the database, it must stay below the lease of a message: 30 s.
        let range = Duration::from_secs(1)..=Duration::from_secs(25);
        let timeout = self.value("timeout", "a duration from 1s to 25s, such as \"10s\"", |value| {
            humantime::parse_duration(value.as_str()?).ok().filter(|length| range.contains(length))
        });
        timeout.unwrap_or(Duration::from_secs(10))
    }

    /// A URL.
    fn url(&mut self, key: &str, default: Option<&str>, may_have_query: bool) -> Url {
        let allow_http = self.value("allow_http", "true or false", Value::as_bool).unwrap_or(false);
        if default.is_none() {
            self.require(key, "a URL such as https://example.com/hooks");
        }
        let given = self.text(key, "text", |_| true);
        let text = given.as_deref().or(default).unwrap_or(STAND_IN);
        // Messages show only scheme and host, because paths and parameters of endpoints are often secrets.
        let Ok(url) = Url::parse(text) else {
            self.mistake(key, "found something that is not a URL; allowed: https://…");
            return Url::parse(STAND_IN).expect("a URL");
        };
        let refusals = [
            (!["https", "http"].contains(&url.scheme()) || url.host().is_none(), "only https://… is allowed"),
            (
                !url.username().is_empty() || url.password().is_some(),
                "it contains a user or password, but secrets are not allowed in this file",
            ),
            (
                url.fragment().is_some() || (url.query().is_some() && !may_have_query),
                "it has parameters or a fragment, which are not allowed here",
            ),
            (
                url.scheme() == "http" && !allow_http && !is_loopback(&url),
                "others on the network could read the messages; allowed: https://…, http:// to this machine, or http:// \
                 to any machine with allow_http = true",
            ),
        ];
        let host = url.host_str().unwrap_or_default();
        for (_, refusal) in refusals.iter().filter(|(is_so, _)| *is_so) {
            self.mistake(key, format!("found a URL at {}://{host}: {refusal}", url.scheme()));
        }
        url
    }

    /// A secret that can be sent in a header.
    fn token(&mut self, key: &str) -> SecretString {
        let token = self.secret(key).unwrap_or_default();
        if !token.is_empty() && !is_visible(&token) {
            self.mistake(key, format!("found something {NO_HEADER}"));
        }
        token.into()
    }

    /// A secret from a variable or a file. Exactly one of `KEY_env` and `KEY_file` names it.
    fn secret(&mut self, key: &str) -> Option<String> {
        let (by_variable, by_file) = (format!("{key}_env"), format!("{key}_file"));
        let variable = self.text(&by_variable, "the name of a variable", |text| {
            let name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            name && !text.is_empty() && !text.starts_with("whsec_")
        });
        let file = self.text(&by_file, "a path", |text| !text.is_empty());
        let is_inside = self.table.contains_key(key);
        if is_inside {
            self.known.insert(key.to_owned());
        }
        let is_elsewhere = !is_inside && variable.is_some() != file.is_some();
        let secret = match (variable, file) {
            _ if is_inside => Err((
                key,
                format!(
                    "secrets are not allowed in this file; name a variable in {by_variable}, or a file in {by_file}"
                ),
            )),
            (Some(_), Some(_)) => Err((
                &*by_variable,
                format!("{by_file} is set too, but only one of the two is allowed; remove the other"),
            )),
            (Some(name), None) => self.secret_of(&name).map_err(|why| {
                (&*by_variable, format!("{why}; set it, or name a file that holds the secret in {by_file}"))
            }),
            (None, Some(path)) => secret_in(&path, &shown_path(&path))
                .map_err(|why| (&*by_file, format!("{why}; put the secret there, or correct {by_file}"))),
            // The given key has an error, which was reported above.
            (None, None) if [&by_variable, &by_file].iter().any(|key| self.table.contains_key(*key)) => {
                return None;
            }
            (None, None) => Err((
                &*by_variable,
                format!(
                    "neither {by_variable} nor {by_file} is set, but one is needed; name the variable that holds the secret \
                     in {by_variable}, or a file in {by_file}"
                ),
            )),
        };
        match secret {
            Ok(secret) => Some(secret),
            Err(_) if is_elsewhere && !self.source.need_secrets => None,
            Err((key, explanation)) => {
                self.mistake(key, explanation);
                None
            }
        }
    }

    /// The secret that a variable holds.
    fn secret_of(&self, name: &str) -> Result<String, String> {
        // A text that does not look like a name may be the secret itself.
        let plain =
            name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_');
        let shown = if plain { name } else { "(its name is not shown)" };
        let text = (self.source.variable)(name).ok_or_else(|| format!("the variable {shown} is not set"))?;
        match text.trim() {
            "" => Err(format!("the variable {shown} is empty")),
            text => Ok(text.to_owned()),
        }
    }

    /// Reports a required key that is missing.
    fn require(&mut self, key: &str, allowed: &str) {
        if !self.table.contains_key(key) {
            self.mistake(key, format!("not set; allowed: {allowed}"));
        }
    }

    fn text(&mut self, key: &str, allowed: &str, is_allowed: impl Fn(&str) -> bool) -> Option<String> {
        let text = |value: &Value| value.as_str().filter(|text| is_allowed(text)).map(ToOwned::to_owned);
        self.value(key, allowed, text)
    }

    fn one_of(&mut self, key: &str, names: &[&'static str]) -> Option<&'static str> {
        self.value(key, &format!("one of {}", names.join(", ")), |value| {
            names.iter().copied().find(|name| value.as_str() == Some(name))
        })
    }

    fn number(&mut self, key: &str, range: RangeInclusive<u32>) -> Option<u32> {
        let allowed = format!("a whole number from {} to {}", range.start(), range.end());
        self.value(key, &allowed, |value| {
            value.as_integer()?.try_into().ok().filter(|number| range.contains(number))
        })
    }

    fn names(&mut self, key: &str) -> Option<Vec<String>> {
        self.value(key, "a list of strings", |value| value.clone().try_into().ok())
    }

    /// A list of known names.
    fn list<T>(&mut self, key: &str, allowed: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let names = self.names(key)?;
        let (elements, refusal) = elements(names.iter().map(String::as_str), "an empty list", allowed, read);
        if let Some(refusal) = refusal {
            self.mistake(key, refusal);
        }
        Some(elements)
    }

    fn value<T>(&mut self, key: &str, allowed: &str, read: impl Fn(&Value) -> Option<T>) -> Option<T> {
        self.known.insert(key.to_owned());
        let value = self.table.get(key)?;
        let read = read(value);
        if read.is_none() {
            let found = match value {
                Value::String(text) => shown(text),
                Value::Integer(number) => number.to_string(),
                other => format!("a {}", other.type_str()),
            };
            self.mistake(key, format!("found {found}; allowed: {allowed}"));
        }
        read
    }

    fn refuse_unknown(&mut self) {
        let unknown: Vec<String> =
            self.table.keys().filter(|key| !self.known.contains(*key)).map(|key| shown(key)).collect();
        if !unknown.is_empty() {
            let known = self.known.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            let explanation = format!("found {}; allowed: {known}", unknown.join(", "));
            let variable = format!("{}{}", self.source.file, self.place);
            self.mistakes.push(Mistake { variable, explanation });
        }
    }

    fn mistake(&mut self, key: &str, explanation: impl Into<String>) {
        let variable = format!("{}{}, {key}", self.source.file, self.place);
        let mistake = Mistake { variable, explanation: explanation.into() };
        // A key that is read twice is reported once.
        if !self.mistakes.contains(&mistake) {
            self.mistakes.push(mistake);
        }
    }
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && text != DATABASE
}

/// The address of the Mailchimp account that a key belongs to. A key ends with the data centre.
fn address_of_key(key: &str) -> Option<String> {
    let (_, centre) = key.rsplit_once('-')?;
    let letters = centre.trim_end_matches(|character: char| character.is_ascii_digit());
    let plain = !letters.is_empty()
        && letters.len() < centre.len()
        && letters.bytes().all(|byte| byte.is_ascii_lowercase());
    plain.then(|| format!("https://{centre}.api.mailchimp.com"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn read_with(text: &str, fields: FieldSet, need_secrets: bool) -> Result<Vec<SinkConfig>, Vec<String>> {
        let variable = |name: &str| match name {
            "CRM_SECRET" | "BILLING_SECRET" => {
                Some(format!("{SECRET} whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"))
            }
            "SEGMENT_WRITE_KEY" | "SEGMENT_TOKEN" => Some("hunter2".to_owned()),
            "MAILCHIMP_API_KEY" => Some("hunter2-us21".to_owned()),
            "EMPTY" => Some(" ".to_owned()),
            "BAD" => Some(format!("hunter2 {SECRET},whsec_hunter2!")),
            _ => None,
        };
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("crm");
        std::fs::write(&path, format!("{SECRET}\n")).expect("a file");
        let text = text.replace("/run/secrets/crm", path.to_str().expect("a path"));
        let selection = &Selection::of(&USER, fields);
        let source = Source { file: "clerk-sync.toml", selection, need_secrets, variable: &variable };
        let mut mistakes = Vec::new();
        let sinks = source.read(&text, &mut mistakes);
        if mistakes.is_empty() {
            return Ok(sinks);
        }
        let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        let all = mistakes.join("\n");
        assert!(!all.contains("hunter2") && !all.contains("MfKQ"), "{all}");
        Err(mistakes)
    }

    fn read(text: &str) -> Result<Vec<SinkConfig>, Vec<String>> {
        let fields = [user::EMAIL, user::FIRST_NAME, user::LAST_NAME, user::IMAGE_URL];
        read_with(text, fields.into_iter().collect(), true)
    }

    fn names(sink: &SinkConfig) -> Vec<&'static str> {
        sink.fields.fields(&USER).of(&USER).map(Field::name).collect()
    }

    /// The errors of a webhook sink with these lines added to the required ones.
    fn mistakes_of(lines: &str) -> Vec<String> {
        let needed = [
            ("name", "name = \"crm\""),
            ("kind", "kind = \"webhook\""),
            ("url", "url = \"https://crm.example/hooks\""),
            ("signing_secret", "signing_secret_env = \"CRM_SECRET\""),
        ];
        let given = |key: &str| lines.lines().any(|line| line.starts_with(key));
        let text: Vec<&str> =
            needed.into_iter().filter(|(key, _)| !given(key)).map(|(_, line)| line).collect();
        read(&format!("[[sink]]\n{}\n{lines}", text.join("\n"))).expect_err(lines)
    }

    #[test]
    fn the_examples_of_the_documentation_are_configurations() {
        let documentation = include_str!("../../docs/sinks.md");
        let examples: Vec<&str> = documentation
            .split("```toml\n")
            .skip(1)
            .map(|rest| rest.split("```").next().expect("an example"))
            .collect();
        assert!(examples.len() >= 4, "{examples:?}");
        let mut kinds = Vec::new();
        for example in &examples {
            let sinks = read(example).unwrap_or_else(|mistakes| panic!("{example}: {mistakes:?}"));
            kinds.extend(sinks.iter().map(|sink| sink.kind.name()));
        }
        assert!(KINDS.iter().all(|kind| kinds.contains(kind)), "{kinds:?}");
    }

    #[test]
    fn a_webhook_has_its_defaults() {
        let sinks = read(
            "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"https://crm.example/hooks?tenant=1\"\n\
             signing_secret_env = \"CRM_SECRET\"\n",
        )
        .expect("valid");
        let [sink] = sinks.as_slice() else { panic!("{sinks:?}") };
        assert_eq!((sink.name.as_str(), sink.kind.name(), sink.host()), ("crm", "webhook", "crm.example"));
        assert_eq!(sink.events, MessageType::of(&USER));
        assert_eq!(names(sink), ["email", "first_name", "last_name", "image_url"]);
        assert_eq!(sink.timeout, Duration::from_secs(10));
        assert_eq!((sink.concurrency, sink.rate, sink.attempts), (4, None, 15));
        let SinkKind::Webhook(webhook) = &sink.kind else { panic!("a webhook") };
        assert_eq!(webhook.secrets.len(), 2, "for rotation");
        assert!(!format!("{sink:?}").contains("tenant"));
    }

    #[test]
    fn everything_can_be_set() {
        let sinks = read(
            "[[sink]]\nname = \"crm-2\"\nkind = \"webhook\"\nurl = \"http://[::1]:1/\"\n\
             signing_secret_file = \"/run/secrets/crm\"\nevents = [\"user.deleted\", \"user.created\"]\n\
             fields = [\"last_name\"]\ntimeout = \"1500ms\"\nconcurrency = 64\nrate = 5\nattempts = 3\n",
        )
        .expect("valid");
        let sink = &sinks[0];
        assert_eq!(sink.events, [MessageType::created(&USER), MessageType::deleted(&USER)]);
        assert_eq!(names(sink), ["last_name"]);
        assert_eq!(sink.timeout, Duration::from_millis(1500));
        assert_eq!((sink.concurrency, sink.rate.map(NonZeroU32::get), sink.attempts), (64, Some(5), 3));
        assert_eq!(sink.subscription().sink, "crm-2");
    }

    #[test]
    fn mailchimp_gets_what_it_has_places_for_at_the_address_that_its_key_tells() {
        let text = "[[sink]]\nname = \"news\"\nkind = \"mailchimp\"\nlist_id = \"a1b2c3d4e5\"\n\
                    api_key_env = \"MAILCHIMP_API_KEY\"\n";
        let sinks = read(text).expect("valid");
        assert_eq!(names(&sinks[0]), ["email", "first_name", "last_name"]);
        assert_eq!(sinks[0].host(), "us21.api.mailchimp.com");
        let SinkKind::Mailchimp(mailchimp) = &sinks[0].kind else { panic!("mailchimp") };
        assert_eq!(mailchimp.status_if_new, "transactional");
        assert_eq!(mailchimp.tags, ["new-user"]);
        assert_eq!(mailchimp.clerk_id_merge_field, "CLERKID");

        let without_email = read_with(text, [user::FIRST_NAME].into_iter().collect(), true);
        assert!(without_email.expect_err("no address")[0].contains("email is missing"));
        assert!(read(&format!("{text}fields = [\"email\", \"image_url\"]")).is_err());
        assert!(read(&format!("{text}concurrency = 11")).is_err());
    }

    #[test]
    fn all_mistakes_are_reported_at_once_with_their_place() {
        let mistakes = read(
            "colour = 1\n[[sink]]\nname = \"CRM\"\nkind = \"webhook\"\nurl = \"ftp://crm.example/path-hunter2\"\n\
             signing_secret_env = \"MISSING\"\ntimeout = \"1m\"\nconcurrency = 0\nretries = 3\n\
             [[sink]]\nkind = \"pigeon\"\n[[sink]]\nname = \"x\"\nkind = \"segment\"\n",
        )
        .expect_err("mistakes");
        let expected = [
            "clerk-sync.toml: found \"colour\"; allowed: only [[sink]]",
            "clerk-sync.toml, sink 1, name: found \"CRM\"; allowed: a name of 1 to 40 characters of a-z, 0-9 and -, except database, which clerk-sync uses",
            "clerk-sync.toml, sink 1, timeout: found \"1m\"; allowed: a duration from 1s to 25s, such as \"10s\"",
            "clerk-sync.toml, sink 1, concurrency: found 0; allowed: a whole number from 1 to 64",
            "clerk-sync.toml, sink 1, url: found a URL at ftp://crm.example: only https://… is allowed",
            "clerk-sync.toml, sink 1, signing_secret_env: the variable MISSING is not set; set it, or name a file that holds the secret in signing_secret_file",
            "clerk-sync.toml, sink 1: found \"retries\"; allowed: allow_http, attempts, concurrency, events, fields, kind, name, rate, signing_secret_env, signing_secret_file, timeout, url",
            "clerk-sync.toml, sink 2, name: not set; allowed: a name of 1 to 40 characters of a-z, 0-9 and -, except database, which clerk-sync uses",
            "clerk-sync.toml, sink 2, kind: found \"pigeon\"; allowed: one of webhook, segment, mailchimp",
            "clerk-sync.toml, sink \"x\", write_key_env: neither write_key_env nor write_key_file is set, but one is needed; name the variable that holds the secret in write_key_env, or a file in write_key_file",
            "clerk-sync.toml, sink \"x\", regulations_token_env: neither regulations_token_env nor regulations_token_file is set, but one is needed; name the variable that holds the secret in regulations_token_env, or a file in regulations_token_file",
        ];
        assert_eq!(mistakes, expected);
    }

    #[test]
    fn one_mistake_hides_no_other() {
        let mistakes = read("sink = 1\n[[other]]\n").expect_err("mistakes");
        assert_eq!(mistakes.len(), 2, "{mistakes:?}");
        let mistakes = read(
            "[[sink]]\nkind = \"webhook\"\nurl = \"http://me:hunter2@crm.example/?a=1#b\"\nsigning_secret_env = \"BAD\"\n\
             [[sink]]\nname = \"x\"\nkind = \"pigeon\"\n[[sink]]\nname = \"x\"\nkind = \"webhook\"\n\
             url = \"https://crm.example\"\nsigning_secret = \"whsec_hunter2\"\nsigning_secret_env = \"CRM_SECRET\"\n\
             [[sink]]\nkind = \"webhook\"\nurl = \"https://crm.example\"\nsigning_secret_env = \"CRM_SECRET\"\n",
        )
        .expect_err("mistakes");
        let has = |part: &str| mistakes.iter().filter(|mistake| mistake.contains(part)).count();
        for (part, times) in [
            ("sink 1, name: not set", 1),
            ("sink 1, url: found a URL at http://crm.example: it contains a user or password", 1),
            ("sink 1, url: found a URL at http://crm.example: it has parameters or a fragment", 1),
            ("sink 1, url: found a URL at http://crm.example: others on the network", 1),
            ("sink 1, signing_secret: secret 1 of 3 cannot be used", 1),
            ("sink 1, signing_secret: secret 3 of 3 cannot be used", 1),
            ("sink \"x\", kind: found \"pigeon\"", 1),
            ("sink \"x\", name: another sink has this name", 1),
            ("sink \"x\", signing_secret: secrets are not allowed in this file", 1),
            ("sink 4, name: not set", 1),
        ] {
            assert_eq!(has(part), times, "{part}: {mistakes:#?}");
        }
        assert_eq!(mistakes.len(), 10, "and none that follows from another error: {mistakes:#?}");
    }

    #[test]
    fn no_mistake_shows_a_secret() {
        for lines in [
            "signing_secret = \"whsec_hunter2\"",
            "signing_secret_env = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"",
            "signing_secret_file = \"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\"",
            "signing_secret_env = \"SEGMENT_TOKEN\"",
            "url = \"https://me:hunter2@crm.example/\"",
            "url = \"https://crm.example/#hunter2\"",
            "url = \"http://crm.example/hunter2\"",
            "url = \"hunter2\"",
            "signing_secret_env = \"CRM_SECRET\"\nhidden = \"hunter2\"",
            "hidden = hunter2",
        ] {
            assert_eq!(mistakes_of(lines).len(), 1, "{lines}");
        }
    }

    #[test]
    fn a_secret_stands_in_exactly_one_other_place() {
        let both =
            mistakes_of("signing_secret_env = \"CRM_SECRET\"\nsigning_secret_file = \"/run/secrets/crm\"");
        assert!(both[0].contains("only one of the two is allowed"), "{both:?}");
        let empty = mistakes_of("signing_secret_env = \"EMPTY\"");
        assert!(
            empty[0].contains("signing_secret_env: the variable EMPTY is empty; set it, or"),
            "{empty:?}"
        );
        let absent = mistakes_of("signing_secret_file = \"/run/secrets/other\"");
        assert!(
            absent[0].contains("signing_secret_file: the file /run/secrets/other cannot be read")
                && absent[0].ends_with("; put the secret there, or correct signing_secret_file"),
            "{absent:?}"
        );
    }

    #[test]
    fn commands_that_tell_nobody_do_without_the_secrets_and_not_without_their_names() {
        let text = |key: &str| {
            format!("[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"https://crm.example/\"\n{key}\n")
        };
        let fields = FieldSet::ALL;
        assert!(read_with(&text("signing_secret_env = \"MISSING\""), fields, false).is_ok());
        assert!(read_with(&text("signing_secret_file = \"/missing\""), fields, false).is_ok());
        assert!(read_with(&text(""), fields, false).is_err());
    }

    #[test]
    fn a_name_stands_for_one_sink_and_not_for_our_own_database() {
        let sink = "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"https://crm.example/\"\n\
                    signing_secret_env = \"CRM_SECRET\"\n";
        let twice = read(&format!("{sink}{sink}")).expect_err("twice");
        assert_eq!(
            twice,
            ["clerk-sync.toml, sink \"crm\", name: another sink has this name; allowed: a unique name"]
        );
        for name in ["database", "", "a b", "ä", &"a".repeat(41)] {
            assert_eq!(mistakes_of(&format!("name = \"{name}\"")).len(), 1, "{name}");
        }
    }

    #[test]
    fn http_is_for_this_machine_unless_it_is_allowed() {
        let sink = |url: &str, more: &str| {
            read(&format!(
                "[[sink]]\nname = \"crm\"\nkind = \"webhook\"\nurl = \"{url}\"\nsigning_secret_env = \"CRM_SECRET\"\n{more}"
            ))
        };
        for url in ["http://127.0.0.1:9/", "http://localhost/", "http://[::1]/", "https://crm.example/"] {
            assert!(sink(url, "").is_ok(), "{url}");
        }
        for url in ["http://crm.example/", "http://10.0.0.1/", "http://localhost.example/"] {
            assert!(sink(url, "").is_err(), "{url}");
            assert!(sink(url, "allow_http = true").is_ok(), "{url}");
        }
    }

    #[test]
    fn what_a_sink_may_know_is_no_more_than_what_is_synced() {
        let mistakes = mistakes_of("fields = [\"email\", \"phone_number\", \"shoe_size\"]");
        assert_eq!(
            mistakes,
            [
                "clerk-sync.toml, sink \"crm\", fields: found \"phone_number\", \"shoe_size\"; allowed: email, first_name, last_name, image_url, which are SYNC_FIELDS"
            ]
        );
        assert_eq!(mistakes_of("fields = []").len(), 1);
        assert_eq!(mistakes_of("events = [\"user.banned\"]").len(), 1);
        assert_eq!(mistakes_of("events = \"user.created\"").len(), 1);
    }

    #[test]
    fn a_line_that_is_not_toml_is_told_by_its_number() {
        let mistakes = read("[[sink]]\nname = \"crm\"\nsigning_secret = hunter2\n").expect_err("not TOML");
        assert_eq!(mistakes, ["clerk-sync.toml: line 3 is not TOML, or names something twice"]);
        let mistakes =
            read("[[sink]]\nname = hunter2\nkind = \"webhook\"\nurl = hunter2\n").expect_err("not TOML");
        let lines =
            [2, 4].map(|line| format!("clerk-sync.toml: line {line} is not TOML, or names something twice"));
        assert_eq!(mistakes, lines);
    }

    #[test]
    fn the_address_of_a_mailchimp_account_is_read_from_its_key() {
        assert_eq!(address_of_key("abc-us21").as_deref(), Some("https://us21.api.mailchimp.com"));
        for key in ["abc", "abc-", "abc-us", "abc-21", "abc-evil.example/us21", "abc-US21"] {
            assert_eq!(address_of_key(key), None, "{key}");
        }
    }
}
