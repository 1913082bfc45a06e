//! Clerk's errors: statuses, codes and bodies.

use hyper::StatusCode;
use serde_json::json;

/// An error answer.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// Whole seconds.
    pub(super) retry_after: Option<u64>,
    code: &'static str,
    message: &'static str,
    long_message: String,
    /// The parameter that caused the error.
    param: Option<&'static str>,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: &'static str, long: impl Into<String>) -> Self {
        Self { status, retry_after: None, code, message, long_message: long.into(), param: None }
    }

    fn parameter(param: &'static str, code: &'static str, message: &'static str, long: String) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, message, long) }
    }

    /// No key, or one in the wrong format.
    pub(super) fn no_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authorization_header_format_invalid",
            "Invalid Authorization header format",
            "Invalid Authorization header format. Must be 'Bearer <YOUR_API_KEY>'",
        )
    }

    pub(super) fn wrong_key() -> Self {
        let message =
            "The provided Clerk Secret Key is invalid. Make sure that your Clerk Secret Key is correct.";
        Self::new(StatusCode::UNAUTHORIZED, "clerk_key_invalid", message, message)
    }

    pub(super) fn no_such(kind: &str, id: &str) -> Self {
        let long = format!("No {kind} was found with id {id}");
        Self::new(StatusCode::NOT_FOUND, "resource_not_found", "not found", long)
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "resource_not_found", "not found", "Resource not found")
    }

    /// The instance has organizations switched off.
    pub(super) fn organizations_off() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "organization_not_enabled_in_instance",
            "access denied",
            "The organizations feature is not enabled for this instance. You can enable it at \
             https://dashboard.clerk.com.",
        )
    }

    /// The instance has billing switched off.
    pub(super) fn billing_off() -> Self {
        let long = "The billing feature is not enabled for this instance.";
        Self::new(StatusCode::FORBIDDEN, "billing_not_enabled", "access denied", long)
    }

    pub(super) fn too_many_requests(retry_after: u64) -> Self {
        let message = "Too many requests. Please try again in a bit.";
        let refusal = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message, message);
        Self { retry_after: Some(retry_after), ..refusal }
    }

    /// A temporary failure.
    pub(super) fn broken(status: StatusCode) -> Self {
        Self::new(
            status,
            "internal_clerk_error",
            "Oops, an unexpected error occurred",
            "There was an internal error on our servers. We've been notified and are working on fixing it.",
        )
    }

    pub(super) fn not_an_integer(param: &'static str) -> Self {
        let long = format!("`{param}` must be a `integer`.");
        Self::parameter(param, "form_param_type_invalid", "is invalid", long)
    }

    pub(super) fn not_allowed(param: &'static str, value: &str) -> Self {
        let long = format!("{value} does not match one of the allowed values for parameter {param}");
        Self::parameter(param, "form_param_value_invalid", "is invalid", long)
    }

    pub(super) fn not_a_time(param: &'static str) -> Self {
        let message = "Date values must be given in Unix millisecond timestamp format.";
        Self::parameter(param, "form_param_invalid_date", message, message.to_owned())
    }

    pub(super) fn too_many_values(param: &'static str, most: usize) -> Self {
        let long = format!("{param} should not exceed {most} items.");
        Self::parameter(param, "form_param_array_size_exceeded", "exceeds maximum size", long)
    }

    pub(super) fn not_together(param: &'static str, other: &'static str) -> Self {
        let long = format!("`{param}` isn't allowed when `{other}` is present.");
        Self::parameter(param, "form_conditional_param_disallowed", "is not allowed", long)
    }

    pub(super) fn not_in_this_order(param: &'static str, order: &str) -> Self {
        let long = format!("`{param}` isn't allowed when `order_by` is {order}.");
        Self::parameter(param, "form_conditional_param_disallowed", "is not allowed", long)
    }

    pub(super) fn missing_resource(param: &'static str) -> Self {
        let long = format!("The resource associated with the supplied {param} was not found.");
        Self::parameter(param, "form_resource_not_found", "is missing", long)
    }

    /// Clerk knows this parameter but the fake does not. Ignoring it would give a misleading answer.
    pub(super) fn not_in_the_fake(param: &'static str) -> Self {
        let long = format!("The fake does not know the parameter {param}");
        Self::new(StatusCode::NOT_IMPLEMENTED, "fake_is_incomplete", "not implemented", long)
    }

    pub(super) fn body(&self, trace_id: &str) -> String {
        let meta = self.param.map_or_else(|| json!({}), |param| json!({ "param_name": param }));
        let error = json!({
            "message": self.message, "long_message": self.long_message, "code": self.code, "meta": meta,
        });
        json!({ "errors": [error], "clerk_trace_id": trace_id }).to_string()
    }
}
