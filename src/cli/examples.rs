//! Examples of every command, as its help and its manual page show them.

use clap::Command;

/// A command's words, and what to type for what.
type Examples = (&'static str, &'static [(&'static str, &'static str)]);

#[rustfmt::skip]
const EXAMPLES: &[Examples] = &[
    ("", &[
        ("everything on this machine, with a story of signed events", "clerk-sync dev --sample"),
        ("what is wrong with the configuration, the database, or Clerk", "clerk-sync doctor"),
        ("the service", "clerk-sync serve"),
        ("what a command does", "clerk-sync erase --help"),
    ]),
    ("serve", &[
        ("with what the environment and .env say", "clerk-sync serve"),
        ("to be reached by others, behind a proxy that speaks TLS", "clerk-sync serve --host 0.0.0.0 --port 8080"),
        ("receive only: `clerk-sync worker` applies what waits", "PROCESSING=queue clerk-sync serve --no-worker"),
    ]),
    ("dev", &[
        ("the service, and commands to try", "clerk-sync dev"),
        ("a story of signed events, and the end", "clerk-sync dev --sample --once"),
        ("a thousand users of a made-up Clerk", "clerk-sync dev --fake-clerk 1000"),
    ]),
    ("migrate", &[("make the tables, or bring them up to date", "clerk-sync migrate")]),
    ("migrate status", &[("", "clerk-sync migrate status")]),
    ("migrate render", &[
        ("the table of a kind that was declared", "clerk-sync migrate render organization_membership"),
        ("a column that was declared", "clerk-sync migrate render organization --column slug"),
    ]),
    ("migrate adopt", &[
        ("what would be taken over from a table made with Prisma",
         "clerk-sync migrate adopt --from 'public.\"User\"' --dry-run"),
        ("and with Drizzle", "clerk-sync migrate adopt --from public.users"),
        ("where columns have names of their own",
         "clerk-sync migrate adopt --from members --id-column auth_id --column phone_number=phone"),
        ("where it says in its own way who is deleted", "clerk-sync migrate adopt --from members --deleted-when \"plan='gone'\""),
    ]),
    ("backfill", &[
        ("everybody; after an interruption the same goes on", "clerk-sync backfill"),
        ("two people, by their addresses", "clerk-sync backfill --email ada@example.com,alan@example.com"),
        ("whoever stands in a file, one id a line", "clerk-sync backfill --user-id @ids.txt"),
        ("who signed up since", "clerk-sync backfill --created-after 2026-01-31 --json"),
    ]),
    ("ensure", &[("", "clerk-sync ensure user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("reconcile", &[
        ("what differs; exits with 1 if anything does", "clerk-sync reconcile --dry-run"),
        ("mend it", "clerk-sync reconcile"),
        ("how many are missing, for a script", "clerk-sync reconcile --dry-run --json | jq .missing.users"),
    ]),
    ("outbox", &[
        ("what other systems did not take, and why", "clerk-sync outbox ls --state dead"),
        ("try it again", "clerk-sync outbox retry --all"),
    ]),
    ("outbox ls", &[
        ("what other systems did not take, and why", "clerk-sync outbox ls --state dead"),
        ("what waits for one of them", "clerk-sync outbox ls --sink crm --state pending --limit 5"),
        ("the reasons, counted", "clerk-sync outbox ls --json --limit 10000 | jq .last_error | sort | uniq -c"),
    ]),
    ("outbox show", &[
        ("", "clerk-sync outbox show 42"),
        ("with what it says of somebody", "clerk-sync outbox show 42 --reveal"),
    ]),
    ("outbox retry", &[
        ("", "clerk-sync outbox retry 42 43"),
        ("how many dead ones a sink has", "clerk-sync outbox retry --sink crm --dry-run"),
        ("all of them", "clerk-sync outbox retry --sink crm"),
    ]),
    ("outbox discard", &[
        ("", "clerk-sync outbox discard 42"),
        ("all dead ones of a sink, by a script", "clerk-sync outbox discard --sink crm --yes"),
    ]),
    ("outbox pause", &[("", "clerk-sync outbox pause crm")]),
    ("outbox resume", &[("", "clerk-sync outbox resume crm")]),
    ("worker", &[
        ("", "clerk-sync worker"),
        ("beside `serve` on the same machine", "clerk-sync worker --admin-port 8082"),
    ]),
    ("queue", &[
        ("what could not be applied, and why", "clerk-sync queue ls --state dead"),
        ("try it again", "clerk-sync queue retry --all"),
    ]),
    ("queue ls", &[
        ("what could not be applied, and why", "clerk-sync queue ls --state dead"),
        ("what waits of one user", "clerk-sync queue ls --user user_29w83sxmDNGwOuEthce5gg56FcC"),
        ("the ids, for a script", "clerk-sync queue ls --json | jq -r '.[].svix_id'"),
    ]),
    ("queue show", &[
        ("", "clerk-sync queue show msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"),
        ("with what it says of somebody", "clerk-sync queue show msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw --reveal"),
    ]),
    ("queue retry", &[
        ("", "clerk-sync queue retry msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"),
        ("how many there are", "clerk-sync queue retry --all --dry-run"),
        ("those of one type", "clerk-sync queue retry --type user.updated"),
    ]),
    ("queue discard", &[
        ("", "clerk-sync queue discard msg_2b1cUcNmCHiGTNxtqMxHvLVNuvw"),
        ("all dead ones, by a script", "clerk-sync queue discard --all --yes"),
    ]),
    ("erase", &[
        ("", "clerk-sync erase user_29w83sxmDNGwOuEthce5gg56FcC"),
        ("whether every copy is gone", "clerk-sync erase status user_29w83sxmDNGwOuEthce5gg56FcC"),
    ]),
    ("erase status", &[("", "clerk-sync erase status user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("erase report", &[
        ("what is not confirmed everywhere, and why", "clerk-sync erase report"),
        ("for cron: exits with 1 if one took longer than 30 days", "clerk-sync erase report --overdue"),
    ]),
    ("erase now", &[("", "clerk-sync erase now user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("erase cancel", &[("", "clerk-sync erase cancel user_29w83sxmDNGwOuEthce5gg56FcC")]),
    ("erase export", &[
        ("every day, kept apart from the backups", "clerk-sync erase export > erased-$(date +%F).jsonl"),
    ]),
    ("erase replay", &[
        ("after a backup was restored, before `serve` starts", "clerk-sync erase replay erased-2026-01-31.jsonl"),
    ]),
    ("audit", &[
        ("", "clerk-sync audit user_29w83sxmDNGwOuEthce5gg56FcC"),
        ("that nobody changed the trail", "clerk-sync audit verify"),
    ]),
    ("audit verify", &[
        ("", "clerk-sync audit verify"),
        ("the newest seal, to be kept elsewhere", "clerk-sync audit verify --json | jq -r .newest_seal"),
    ]),
    ("minimize", &[
        ("how many values would go, column by column", "clerk-sync minimize --dry-run"),
        ("by a script", "clerk-sync minimize --yes"),
    ]),
    ("prune", &[
        ("how much would go", "clerk-sync prune --dry-run"),
        ("", "clerk-sync prune"),
    ]),
    ("sample", &[
        ("", "clerk-sync sample user.created"),
        ("ready to be pasted; good for five minutes", "clerk-sync sample user.updated --curl"),
    ]),
    ("send", &[
        ("an event that changes nothing", "clerk-sync send session.created"),
        ("ten new users, to another place",
         "clerk-sync send user.created --count 10 --url https://sync.example.com/webhooks/clerk"),
    ]),
    ("sinks", &[
        ("which there are, and what they may know", "clerk-sync sinks"),
        ("whether one can be told", "clerk-sync sinks test crm"),
    ]),
    ("sinks test", &[("", "clerk-sync sinks test crm")]),
    ("sinks moved", &[("how many users are known at the address before", "clerk-sync sinks moved crm --dry-run")]),
    ("doctor", &[
        ("before the first start, and whenever something is wrong", "clerk-sync doctor"),
        ("the way that Clerk's webhooks take, proxies included",
         "clerk-sync doctor --url https://sync.example.com/webhooks/clerk"),
        ("what failed, for a script", "clerk-sync doctor --json | jq '.[] | select(.status == \"fail\")'"),
    ]),
    ("stats", &[
        ("", "clerk-sync stats"),
        ("one number, for a script", "clerk-sync stats --json | jq .queue.dead"),
    ]),
    ("config", &[
        ("", "clerk-sync config"),
        ("what is not as by default", "clerk-sync config | grep -v default$"),
    ]),
    ("healthcheck", &[
        ("", "clerk-sync healthcheck"),
        ("of a worker beside it, also while the database is away", "clerk-sync healthcheck --live --admin-port 8082"),
    ]),
    ("completions", &[
        ("for this shell", "source <(clerk-sync completions bash)"),
        ("for good", "clerk-sync completions fish > ~/.config/fish/completions/clerk-sync.fish"),
    ]),
    ("man", &[
        ("", "clerk-sync man | man -l -"),
        ("for good", "clerk-sync man --dir ~/.local/share/man/man1"),
    ]),
];

/// The command and all below it with their examples, before whatever else stands at the end of their help. `words` are those
/// that lead to it.
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

    /// The words of an example behind its variables, up to whatever the shell does with the output.
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
