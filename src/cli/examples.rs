//! Examples for every command, shown in its help and on its manual page.

use clap::Command;

/// The words of a command, and its examples: a description and the command line.
type Examples = (&'static str, &'static [(&'static str, &'static str)]);

#[rustfmt::skip]
const EXAMPLES: &[Examples] = &[
    ("", &[
        ("everything on this machine, with a scenario of signed events", "clerk-sync dev --sample"),
        ("check the configuration, the database and Clerk", "clerk-sync doctor"),
        ("run the service", "clerk-sync serve"),
        ("show what a command does", "clerk-sync erase --help"),
    ]),
    ("serve", &[
        ("configured by the environment and .env", "clerk-sync serve"),
        ("reachable by others, behind a proxy that terminates TLS", "clerk-sync serve --host 0.0.0.0 --port 8080"),
        ("receive only: `clerk-sync worker` applies the queue", "PROCESSING=queue clerk-sync serve --no-worker"),
    ]),
    ("dev", &[
        ("the service, and commands to try", "clerk-sync dev"),
        ("a scenario of signed events, then exit", "clerk-sync dev --sample --once"),
        ("a fake Clerk with a thousand users", "clerk-sync dev --fake-clerk 1000"),
    ]),
    ("migrate", &[("create the tables, or bring them up to date", "clerk-sync migrate")]),
    ("migrate status", &[("", "clerk-sync migrate status")]),
    ("migrate render", &[
        ("the table of a declared kind", "clerk-sync migrate render organization_membership"),
        ("a declared column", "clerk-sync migrate render organization --column slug"),
    ]),
    ("migrate adopt", &[
        ("preview the import from a table created by Prisma",
         "clerk-sync migrate adopt --from 'public.\"User\"' --dry-run"),
        ("import from a table created by Drizzle", "clerk-sync migrate adopt --from public.users"),
        ("if columns have other names",
         "clerk-sync migrate adopt --from members --id-column auth_id --column phone_number=phone"),
        ("if it marks deleted users in its own way", "clerk-sync migrate adopt --from members --deleted-when \"plan='gone'\""),
    ]),
    ("backfill", &[
        ("all objects; run it again to resume after an interruption", "clerk-sync backfill"),
        ("two users, by their addresses", "clerk-sync backfill --email ada@example.com,alan@example.com"),
        ("the users in a file, one id per line", "clerk-sync backfill --user-id @ids.txt"),
        ("users who signed up after a day", "clerk-sync backfill --created-after 2026-01-31 --json"),
    ]),
    ("ensure", &[("", "clerk-sync ensure user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("reconcile", &[
        ("list differences; exits with 1 if there are any", "clerk-sync reconcile --dry-run"),
        ("fix them", "clerk-sync reconcile"),
        ("the number of missing users, for a script", "clerk-sync reconcile --dry-run --json | jq .missing.users"),
    ]),
    ("outbox", &[
        ("messages that other systems did not accept, and why", "clerk-sync outbox ls --state dead"),
        ("retry them", "clerk-sync outbox retry --all"),
    ]),
    ("outbox ls", &[
        ("messages that other systems did not accept, and why", "clerk-sync outbox ls --state dead"),
        ("pending messages for one sink", "clerk-sync outbox ls --sink crm --state pending --limit 5"),
        ("the reasons, counted", "clerk-sync outbox ls --json --limit 10000 | jq .last_error | sort | uniq -c"),
    ]),
    ("outbox show", &[
        ("", "clerk-sync outbox show 42"),
        ("with its personal data", "clerk-sync outbox show 42 --reveal"),
    ]),
    ("outbox retry", &[
        ("", "clerk-sync outbox retry 42 43"),
        ("how many dead messages a sink has", "clerk-sync outbox retry --sink crm --dry-run"),
        ("retry all of them", "clerk-sync outbox retry --sink crm"),
    ]),
    ("outbox discard", &[
        ("", "clerk-sync outbox discard 42"),
        ("all dead messages of a sink, in a script", "clerk-sync outbox discard --sink crm --yes"),
    ]),
    ("outbox pause", &[("", "clerk-sync outbox pause crm")]),
    ("outbox resume", &[("", "clerk-sync outbox resume crm")]),
    ("worker", &[
        ("", "clerk-sync worker"),
        ("alongside `serve` on the same machine", "clerk-sync worker --admin-port 8082"),
    ]),
    ("queue", &[
        ("deliveries that could not be applied, and why", "clerk-sync queue ls --state dead"),
        ("retry them", "clerk-sync queue retry --all"),
    ]),
    ("queue ls", &[
        ("deliveries that could not be applied, and why", "clerk-sync queue ls --state dead"),
        ("the deliveries about one user", "clerk-sync queue ls --user user_29w83sxmDNGwOuEthce5gg56FcC"),
        ("the ids, for a script", "clerk-sync queue ls --json | jq -r '.[].svix_id'"),
    ]),
    ("queue show", &[
        ("", "clerk-sync queue show msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"),
        ("with its personal data", "clerk-sync queue show msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw --reveal"),
    ]),
    ("queue retry", &[
        ("", "clerk-sync queue retry msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"),
        ("how many would be retried", "clerk-sync queue retry --all --dry-run"),
        ("those of one event type", "clerk-sync queue retry --type user.updated"),
    ]),
    ("queue discard", &[
        ("", "clerk-sync queue discard msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"),
        ("all dead deliveries, in a script", "clerk-sync queue discard --all --yes"),
    ]),
    ("erase", &[
        ("", "clerk-sync erase user_29w83sxmDNGwOuEthce5gg56FcC"),
        ("whether every copy is erased", "clerk-sync erase status user_29w83sxmDNGwOuEthce5gg56FcC"),
    ]),
    ("erase status", &[("", "clerk-sync erase status user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("erase report", &[
        ("erasures that are not confirmed everywhere, and why", "clerk-sync erase report"),
        ("for cron: exits with 1 if one is open for more than 30 days", "clerk-sync erase report --overdue"),
    ]),
    ("erase now", &[("", "clerk-sync erase now user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("erase cancel", &[("", "clerk-sync erase cancel user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("erase export", &[
        ("daily, stored apart from the backups", "clerk-sync erase export > erased-$(date +%F).jsonl"),
    ]),
    ("erase replay", &[
        ("after a backup was restored, before `serve` starts", "clerk-sync erase replay erased-2026-01-31.jsonl"),
    ]),
    ("audit", &[
        ("", "clerk-sync audit user_29w83sxmDNGwOuEthce5gg56FcC"),
        ("verify that the trail is unchanged", "clerk-sync audit verify"),
    ]),
    ("audit verify", &[
        ("", "clerk-sync audit verify"),
        ("the newest seal, to be stored elsewhere", "clerk-sync audit verify --json | jq -r .newest_seal"),
    ]),
    ("minimize", &[
        ("how many values would be cleared, by column", "clerk-sync minimize --dry-run"),
        ("in a script", "clerk-sync minimize --yes"),
    ]),
    ("prune", &[
        ("how many rows would be deleted", "clerk-sync prune --dry-run"),
        ("", "clerk-sync prune"),
    ]),
    ("sample", &[
        ("", "clerk-sync sample user.created"),
        ("ready to paste; valid for five minutes", "clerk-sync sample user.updated --curl"),
    ]),
    ("send", &[
        ("an event that changes nothing", "clerk-sync send session.created"),
        ("ten new users, to another URL",
         "clerk-sync send user.created --count 10 --url https://sync.example.com/webhooks/clerk"),
    ]),
    ("sinks", &[
        ("all sinks, with their events and fields", "clerk-sync sinks"),
        ("send a test message to one", "clerk-sync sinks test crm"),
    ]),
    ("sinks test", &[("", "clerk-sync sinks test crm")]),
    ("sinks moved", &[("how many users the system at the old address knows", "clerk-sync sinks moved crm --dry-run")]),
    ("doctor", &[
        ("before the first start, and whenever something is wrong", "clerk-sync doctor"),
        ("over the path that Clerk's webhooks take, including proxies",
         "clerk-sync doctor --url https://sync.example.com/webhooks/clerk"),
        ("what failed, for a script", "clerk-sync doctor --json | jq '.[] | select(.status == \"fail\")'"),
    ]),
    ("stats", &[
        ("", "clerk-sync stats"),
        ("one number, for a script", "clerk-sync stats --json | jq .queue.dead"),
    ]),
    ("config", &[
        ("", "clerk-sync config"),
        ("only values that differ from the defaults", "clerk-sync config | grep -v default$"),
    ]),
    ("healthcheck", &[
        ("", "clerk-sync healthcheck"),
        ("of a worker alongside it, even while the database is unreachable", "clerk-sync healthcheck --live --admin-port 8082"),
    ]),
    ("completions", &[
        ("for this shell", "source <(clerk-sync completions bash)"),
        ("permanently", "clerk-sync completions fish > ~/.config/fish/completions/clerk-sync.fish"),
    ]),
    ("man", &[
        ("", "clerk-sync man | man -l -"),
        ("permanently", "clerk-sync man --dir ~/.local/share/man/man1"),
    ]),
];

/// Adds the examples to the help of the command and of all its subcommands, before any other text at the end of their help.
/// `words` are the words that lead to the command.
pub(super) fn with_examples(command: Command, words: &str) -> Command {
    let command = command.mut_subcommands(|below| {
        let words = format!("{words} {}", below.get_name());
        with_examples(below, words.trim())
    });
    let Some((_, examples)) = EXAMPLES.iter().find(|(of, _)| *of == words) else { return command };
    let mut text = "Examples:".to_owned();
    for (what, example) in *examples {
        if !what.is_empty() {
            text = format!("{text}\n    # {what}");
        }
        text = format!("{text}\n    {example}");
    }
    if let Some(rest) = command.get_after_help() {
        text = format!("{text}\n\n{rest}");
    }
    command.after_help(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command_line;

    /// The words of an example after its variables, up to a pipe, a redirection or a closing parenthesis.
    fn arguments(example: &str) -> Vec<String> {
        let (_, rest) = example.split_once("clerk-sync").expect("it runs the program");
        let end = [" | ", " > ", ")"].iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
        let words = rest[..end].split_whitespace().map(|word| word.trim_matches('\'').to_owned());
        ["clerk-sync".to_owned()].into_iter().chain(words).collect()
    }

    fn check(command: &mut Command, words: &str, seen: &mut Vec<String>) {
        let help = command.render_long_help().to_string();
        let (_, examples) =
            help.split_once("Examples:\n").unwrap_or_else(|| panic!("{words:?} has examples"));
        let (examples, _) = examples.split_once("\n\n").unwrap_or((examples, ""));
        let mut lines = 0;
        for line in examples.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let arguments = arguments(line);
            let is_of_command = arguments.join(" ").starts_with(format!("clerk-sync {words}").trim());
            assert!(is_of_command, "{words}: {line}");
            if let Err(error) = command_line().try_get_matches_from(&arguments) {
                assert_eq!(error.exit_code(), 0, "{line}: {error}");
            }
            lines += 1;
        }
        assert!(lines > 0, "{help}");
        seen.push(words.to_owned());
        for below in command.get_subcommands_mut().filter(|below| below.get_name() != "help") {
            let words = format!("{words} {}", below.get_name());
            check(below, words.trim(), seen);
        }
    }

    #[test]
    fn the_help_of_every_command_has_examples_that_can_be_run() {
        let mut seen = Vec::new();
        check(&mut command_line(), "", &mut seen);
        assert!(seen.len() > 40, "{seen:?}");
        for (words, _) in EXAMPLES {
            assert!(seen.iter().any(|command| command == words), "there is no command {words:?}");
        }
    }

    #[test]
    fn no_example_is_so_long_that_its_line_is_broken() {
        for (words, examples) in EXAMPLES {
            for (what, example) in *examples {
                assert!(what.len() <= 72 && example.len() <= 90, "{words}: {what} {example}");
            }
        }
    }
}
