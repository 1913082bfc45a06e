//! Logs and metrics: their form and their names.
