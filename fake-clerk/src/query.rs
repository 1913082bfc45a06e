//! The parameters of list requests, checked as Clerk checks them.
//!
//! As at Clerk, an unencoded `+` is a space, so `order_by=+created_at` is refused. Parameters that Clerk does not have are
//! ignored.

use std::{collections::BTreeSet, ops::RangeInclusive};

use url::form_urlencoded;

use super::{
    refusal::Refusal,
    user::{Seed, User, numbers_named},
};

/// The largest page, and the default page size.
const MAX_LIMIT: usize = 500;
const DEFAULT_LIMIT: usize = 10;

/// The most values of a parameter that may be repeated.
const MAX_VALUES: usize = 100;

/// Parameters that Clerk has and the fake does not.
const MISSING: [&str; 4] = ["organization_id", "provider", "provider_user_id", "last_active_at_since"];

/// The same for lists of organizations and memberships.
const MISSING_WITH_ORGANIZATIONS: [&str; 17] = [
    "include_members_count",
    "include_missing_member_with_elevated_permissions",
    "query",
    "user_id",
    "email_address",
    "phone_number",
    "username",
    "web3_wallet",
    "role",
    "email_address_query",
    "phone_number_query",
    "username_query",
    "name_query",
    "last_active_at_before",
    "last_active_at_after",
    "created_at_before",
    "created_at_after",
];

/// A page of users.
pub(super) struct UserQuery {
    pub(super) page: Page,
    pub(super) filter: Filter,
    /// The id of the user after whom the page starts.
    pub(super) starting_after: Option<String>,
}

/// A page of organizations or of memberships.
pub(super) struct OrganizationQuery {
    pub(super) page: Page,
    pub(super) organization_id: Choice,
}

/// A page of any list.
pub(super) struct Page {
    pub(super) order: Order,
    offset: usize,
    limit: usize,
}

/// The order of a list.
#[derive(Clone, Copy)]
pub(super) struct Order {
    pub(super) key: OrderKey,
    pub(super) descending: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum OrderKey {
    CreatedAt,
    UpdatedAt,
    LastActiveAt,
    LastSignInAt,
    EmailAddress,
    PhoneNumber,
    Web3Wallet,
    Username,
    FirstName,
    LastName,
}

/// Selects the users that every part of the filter admits.
pub(super) struct Filter {
    user_id: Choice,
    external_id: Choice,
    email_address: Choice,
    phone_number: Choice,
    username: Choice,
    web3_wallet: Choice,
    query: Option<String>,
    email_address_query: Option<String>,
    phone_number_query: Option<String>,
    username_query: Option<String>,
    name_query: Option<String>,
    banned: Option<bool>,
    pub(super) created_at: Window,
    last_active_at: Window,
    last_sign_in_at: Window,
}

/// Required values, if there are any, and excluded values.
#[derive(Default)]
pub(super) struct Choice {
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
}

/// Times in Unix milliseconds; `None` admits any time, including a missing one.
pub(super) type Window = Option<RangeInclusive<i64>>;

impl UserQuery {
    /// `inclusive`: whether `…_after` and `…_before` include the millisecond that they name.
    pub(super) fn parse(query: &str, inclusive: bool, cursors: bool) -> Result<Self, Refusal> {
        let parameters = Parameters::parse(query);
        let page = parameters.page(|_| true)?;
        let starting_after = parameters.first("starting_after").filter(|_| cursors);
        if starting_after.is_some() {
            if page.order.key != OrderKey::CreatedAt {
                let written = parameters.first("order_by").unwrap_or_default();
                return Err(Refusal::not_in_this_order("starting_after", written));
            }
            if parameters.first("offset").is_some() {
                return Err(Refusal::not_together("offset", "starting_after"));
            }
        }
        Ok(Self {
            page,
            filter: Filter::from_parameters(&parameters, inclusive)?,
            starting_after: starting_after.map(ToOwned::to_owned),
        })
    }
}

impl OrganizationQuery {
    pub(super) fn parse(query: &str) -> Result<Self, Refusal> {
        let parameters = Parameters::parse(query);
        parameters.check_known(&MISSING_WITH_ORGANIZATIONS)?;
        Ok(Self {
            page: parameters.page(|key| key == OrderKey::CreatedAt)?,
            organization_id: parameters.signed_choice("organization_id")?,
        })
    }
}

/// A page of a supplied list, and the user whose objects are requested, if one is named.
pub(super) fn of_list(query: &str) -> Result<(Page, Option<String>), Refusal> {
    let parameters = Parameters::parse(query);
    let mut page = parameters.page(|key| key == OrderKey::CreatedAt)?;
    page.order.descending = parameters.first("order_by").is_some_and(|order| order.starts_with('-'));
    Ok((page, parameters.first("user_id").map(ToOwned::to_owned)))
}

impl Page {
    /// The page's part of the whole list, which is in ascending order.
    pub(super) fn of<T>(&self, ascending: impl DoubleEndedIterator<Item = T>) -> Vec<T> {
        if self.order.descending {
            ascending.rev().skip(self.offset).take(self.limit).collect()
        } else {
            ascending.skip(self.offset).take(self.limit).collect()
        }
    }
}

impl Order {
    fn parse(text: &str) -> Option<Self> {
        let (descending, key) = match text.strip_prefix('-') {
            Some(key) => (true, key),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let key = match key {
            "created_at" => OrderKey::CreatedAt,
            "updated_at" => OrderKey::UpdatedAt,
            "last_active_at" => OrderKey::LastActiveAt,
            "last_sign_in_at" => OrderKey::LastSignInAt,
            "email_address" => OrderKey::EmailAddress,
            "phone_number" => OrderKey::PhoneNumber,
            "web3wallet" => OrderKey::Web3Wallet,
            "username" => OrderKey::Username,
            "first_name" => OrderKey::FirstName,
            "last_name" => OrderKey::LastName,
            _ => return None,
        };
        Some(Self { key, descending })
    }
}

impl OrderKey {
    /// The text that users are ordered by, if this key is a text.
    pub(super) fn text(self, user: User) -> Option<String> {
        match self {
            Self::EmailAddress => user.email_addresses.into_iter().last().map(|email| email.address),
            Self::PhoneNumber => user.phone_numbers.into_iter().next().map(|phone| phone.number),
            Self::Web3Wallet => user.web3_wallets.into_iter().next().map(|wallet| wallet.address),
            Self::Username => user.username,
            Self::FirstName => user.first_name.map(ToOwned::to_owned),
            Self::LastName => user.last_name.map(ToOwned::to_owned),
            Self::CreatedAt | Self::UpdatedAt | Self::LastActiveAt | Self::LastSignInAt => None,
        }
    }
}

impl Filter {
    pub(super) fn parse(query: &str, inclusive: bool) -> Result<Self, Refusal> {
        Self::from_parameters(&Parameters::parse(query), inclusive)
    }

    fn from_parameters(parameters: &Parameters, inclusive: bool) -> Result<Self, Refusal> {
        parameters.check_known(&MISSING)?;
        let text = |name| parameters.first(name).map(str::to_lowercase);
        let banned = match parameters.first("banned") {
            None => None,
            Some("true") => Some(true),
            Some("false") => Some(false),
            Some(other) => return Err(Refusal::not_allowed("banned", other)),
        };
        let window = |after, before| parameters.window(after, before, inclusive);
        Ok(Self {
            user_id: parameters.signed_choice("user_id")?,
            external_id: parameters.signed_choice("external_id")?,
            email_address: parameters.choice("email_address")?,
            phone_number: parameters.choice("phone_number")?,
            username: parameters.choice("username")?,
            web3_wallet: parameters.choice("web3_wallet")?,
            query: text("query"),
            email_address_query: text("email_address_query"),
            phone_number_query: text("phone_number_query"),
            username_query: text("username_query"),
            name_query: text("name_query"),
            banned,
            created_at: window("created_at_after", "created_at_before")?,
            last_active_at: window("last_active_at_after", "last_active_at_before")?,
            last_sign_in_at: window("last_sign_in_at_after", "last_sign_in_at_before")?,
        })
    }

    /// The only users that can match, if the filter names any.
    pub(super) fn numbers(&self, number_of: impl Fn(&str) -> Option<u32>) -> Option<BTreeSet<u32>> {
        if !self.user_id.include.is_empty() {
            return Some(self.user_id.include.iter().filter_map(|id| number_of(id)).collect());
        }
        let others =
            [&self.external_id, &self.email_address, &self.phone_number, &self.username, &self.web3_wallet];
        let named = others.into_iter().find(|choice| !choice.include.is_empty())?;
        Some(named.include.iter().filter_map(|value| numbers_named(value)).flatten().collect())
    }

    pub(super) fn admits(&self, seed: &Seed) -> bool {
        let within = |window: &Window, at: Option<i64>| {
            window.as_ref().is_none_or(|window| at.is_some_and(|at| window.contains(&at)))
        };
        within(&self.created_at, Some(seed.created_at))
            && within(&self.last_active_at, seed.last_active_at())
            && within(&self.last_sign_in_at, seed.last_sign_in_at())
            && self.banned.is_none_or(|banned| banned == seed.is_banned())
            && (!self.asks_for_more() || self.admits_user(&User::from(seed)))
    }

    /// Whether the filter needs more than the seed of a user.
    fn asks_for_more(&self) -> bool {
        let choices = [
            &self.user_id,
            &self.external_id,
            &self.email_address,
            &self.phone_number,
            &self.username,
            &self.web3_wallet,
        ];
        let queries = [
            &self.query,
            &self.email_address_query,
            &self.phone_number_query,
            &self.username_query,
            &self.name_query,
        ];
        choices.into_iter().any(|choice| !choice.is_any()) || queries.into_iter().any(Option::is_some)
    }

    fn admits_user(&self, user: &User) -> bool {
        let emails = || user.email_addresses.iter().map(|email| email.address.as_str());
        let phones = || user.phone_numbers.iter().map(|phone| phone.number.as_str());
        let wallets = || user.web3_wallets.iter().map(|wallet| wallet.address.as_str());
        let username = || user.username.as_deref().into_iter();
        let names = || [user.first_name, user.last_name].into_iter().flatten();
        let id = || std::iter::once(user.id.as_str());
        self.user_id.admits(id())
            && self.external_id.admits(user.external_id.as_deref().into_iter())
            && self.email_address.admits(emails())
            && self.phone_number.admits(phones())
            && self.username.admits(username())
            && self.web3_wallet.admits(wallets())
            && found(self.email_address_query.as_deref(), emails())
            && found(self.phone_number_query.as_deref(), phones())
            && found(self.username_query.as_deref(), username())
            && found(self.name_query.as_deref(), names())
            && found(
                self.query.as_deref(),
                emails().chain(phones()).chain(wallets()).chain(username()).chain(names()).chain(id()),
            )
    }
}

impl Choice {
    pub(super) fn is_any(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }

    fn admits<'a>(&self, mut values: impl Iterator<Item = &'a str> + Clone) -> bool {
        let mut kept = values.clone();
        let is_in = |list: &[String], value: &str| list.iter().any(|wanted| wanted == value);
        !values.any(|value| is_in(&self.exclude, value))
            && (self.include.is_empty() || kept.any(|value| is_in(&self.include, value)))
    }
}

/// Whether a value contains the wanted text, ignoring case.
fn found<'a>(wanted: Option<&str>, mut values: impl Iterator<Item = &'a str>) -> bool {
    wanted.is_none_or(|wanted| values.any(|value| value.to_lowercase().contains(wanted)))
}

/// The decoded query string.
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn parse(query: &str) -> Self {
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// For a parameter that may not be repeated, Clerk uses the first value.
    fn first(&self, name: &str) -> Option<&str> {
        self.all(name).next()
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn integer(&self, name: &'static str) -> Result<Option<usize>, Refusal> {
        self.first(name).map(|text| text.parse().map_err(|_| Refusal::not_an_integer(name))).transpose()
    }

    /// Refuse parameters that the fake lacks.
    fn check_known(&self, missing: &[&'static str]) -> Result<(), Refusal> {
        let asked = missing.iter().find(|name| self.first(name).is_some());
        asked.map_or(Ok(()), |name| Err(Refusal::not_in_the_fake(name)))
    }

    /// `by`: the keys by which such a list can be ordered.
    fn page(&self, by: impl Fn(OrderKey) -> bool) -> Result<Page, Refusal> {
        let limit = self.integer("limit")?.unwrap_or(DEFAULT_LIMIT);
        if !(1..=MAX_LIMIT).contains(&limit) {
            return Err(Refusal::not_allowed("limit", &limit.to_string()));
        }
        let written = self.first("order_by").unwrap_or("-created_at");
        let order = Order::parse(written)
            .filter(|order| by(order.key))
            .ok_or_else(|| Refusal::not_allowed("order_by", written))?;
        Ok(Page { order, offset: self.integer("offset")?.unwrap_or_default(), limit })
    }

    fn choice(&self, name: &'static str) -> Result<Choice, Refusal> {
        let include: Vec<String> = self.all(name).map(ToOwned::to_owned).collect();
        if include.len() > MAX_VALUES {
            return Err(Refusal::too_many_values(name, MAX_VALUES));
        }
        Ok(Choice { include, exclude: Vec::new() })
    }

    /// A choice whose values may begin with `+` or `-`.
    fn signed_choice(&self, name: &'static str) -> Result<Choice, Refusal> {
        let mut choice = Choice::default();
        for value in self.choice(name)?.include {
            match value.strip_prefix('-') {
                Some(value) => choice.exclude.push(value.to_owned()),
                None => choice.include.push(value.strip_prefix('+').unwrap_or(&value).to_owned()),
            }
        }
        Ok(choice)
    }

    fn window(&self, after: &'static str, before: &'static str, inclusive: bool) -> Result<Window, Refusal> {
        let time = |name| match self.first(name) {
            Some(text) => text.parse::<i64>().map(Some).map_err(|_| Refusal::not_a_time(name)),
            None => Ok(None),
        };
        let (after, before) = (time(after)?, time(before)?);
        if after.is_none() && before.is_none() {
            return Ok(None);
        }
        let step = i64::from(!inclusive);
        let from = after.map_or(i64::MIN, |after| after.saturating_add(step));
        let to = before.map_or(i64::MAX, |before| before.saturating_sub(step));
        Ok(Some(from..=to))
    }
}
