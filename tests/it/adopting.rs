//! Adopting the users of an existing table.

use crate::{
    catching_up::Clerk,
    service::{Finished, Host, Keeper, deletion, milliseconds, on_each_keeper, post, user},
};

on_each_keeper!(
    a_prisma_table_is_adopted_after_a_dry_run,
    a_drizzle_table_is_adopted,
    whatever_clerk_says_is_newer_than_a_row_that_was_adopted,
    a_column_that_the_user_names_is_clerks_own_time,
    nobody_comes_alive_whom_the_table_calls_deleted,
    who_is_deleted_is_said_by_a_condition_where_no_column_says_it_plainly,
    who_is_known_here_is_left_as_they_are,
    the_column_with_clerks_ids_is_found_by_what_is_in_it,
    where_it_is_not_plain_which_column_has_the_ids_the_user_is_asked,
    columns_that_look_like_ours_are_named_and_read_if_the_user_says_so,
    times_without_a_zone_are_read_in_the_zone_that_is_named,
    rows_of_one_id_are_one_user,
    what_is_printed_about_a_table_of_another_tool_can_be_followed_word_by_word,
);

/// An id as long as Clerk's ids are.
fn id(number: u32) -> String {
    format!("user_2d{number:025}")
}

/// The name of an application's table, which is outside of our schema if the backend has schemas.
fn app_table(host: &Host, name: &str) -> String {
    match host.keeper {
        Keeper::Postgres => {
            host.sql(&format!("CREATE SCHEMA IF NOT EXISTS {}_app", host.schema));
            format!("{}_app.{name}", host.schema)
        }
        _ => name.to_owned(),
    }
}

fn adopt(host: &Host, table: &str, options: &[&str]) -> Finished {
    host.run(&[&["migrate", "adopt", "--from", table], options].concat())
}

fn a_prisma_table_is_adopted_after_a_dry_run(host: &mut Host) {
    let table = app_table(host, "\"User\"");
    host.sql(&format!(
        r#"CREATE TABLE {table} ("id" {key} PRIMARY KEY, "clerkId" TEXT NOT NULL, "email" TEXT NOT NULL,
               "firstName" TEXT, "lastName" TEXT, "imageUrl" TEXT,
               "createdAt" TIMESTAMP NOT NULL, "updatedAt" TIMESTAMP NOT NULL);
           INSERT INTO {table} VALUES
               ('a', 'user_a', 'a@example.com', 'Ada', NULL, NULL, '2024-01-01 00:00:00', '2024-02-01 00:00:00.123'),
               ('b', 'user_b', 'b@example.com', 'Bob', 'B', 'https://x', '2024-01-02 00:00:00', '2024-02-02 00:00:00')"#,
        key = host.key_type()
    ));
    let from = table.clone();
    if host.keeper == Keeper::Sqlite {
        for plain in ["User", "main.\"User\"", "[User]"] {
            assert!(adopt(host, plain, &["--dry-run"]).succeeded().contains("2  would be copied"));
        }
    }
    let told = adopt(host, &from, &["--dry-run"]).succeeded();
    assert!(told.contains("2  would be copied"), "{told}");
    assert!(told.contains("clerkId → clerk_id") && told.contains("firstName → first_name"), "{told}");
    assert!(told.contains("updatedAt: probably the time when your application wrote the row"), "{told}");
    assert!(!told.contains("Not read because empty in every row"), "{told}");
    let pending = host.run(&["migrate", "status"]).succeeded();
    assert!(pending.contains("pending"), "a dry run changed something: {pending}");

    let told = adopt(host, &from, &[]).succeeded();
    assert!(told.contains("2  copied"), "{told}");
    let rows = host.sql(
        "SELECT clerk_id, email, first_name, last_name, image_url, updated_at FROM users ORDER BY clerk_id",
    );
    assert_eq!(
        rows,
        [
            ["user_a", "a@example.com", "Ada", "NULL", "NULL", "NULL"],
            ["user_b", "b@example.com", "Bob", "B", "https://x", "NULL"]
        ]
    );
    assert_eq!(host.sql("SELECT DISTINCT source, action FROM audit_log"), [["cli", "USER_CREATED"]]);
    assert_eq!(host.count(&table), 2, "the adopted table stays as it is");
    let again = adopt(host, &from, &[]).succeeded();
    assert!(again.contains("0  copied") && again.contains("2  already here"), "{again}");
    assert_eq!(host.count("audit_log"), 2);
}

fn a_drizzle_table_is_adopted(host: &mut Host) {
    // With schemas, the table may have the same name as ours.
    let table = app_table(host, if host.keeper == Keeper::Postgres { "users" } else { "members" });
    host.sql(&format!(
        "CREATE TABLE {table} (id integer PRIMARY KEY, clerk_id text, email text, first_name text,
             last_name text, image_url text, created_at timestamp, updated_at timestamp, deleted_at timestamp);
         INSERT INTO {table} VALUES
             (1, 'user_a', 'a@example.com', 'Ada', 'L', NULL, '2024-01-01 00:00:00', '2024-02-01 00:00:00', NULL),
             (2, 'user_b', 'b@example.com', 'Bob', 'B', NULL, '2024-01-01 00:00:00', NULL, NULL),
             (3, 'user_gone', NULL, NULL, NULL, NULL, '2024-01-01 00:00:00', '2024-02-01 00:00:00',
              '2024-03-01 00:00:00'),
             (4, NULL, 'guest@example.com', NULL, NULL, NULL, '2024-01-01 00:00:00', NULL, NULL)"
    ));
    let told = adopt(host, &table, &[]).succeeded();
    assert!(told.contains("2  copied") && told.contains("1  deleted according to the table"), "{told}");
    assert!(told.contains("1  rows skipped: they have no Clerk id"), "{told}");
    let rows = host.sql("SELECT clerk_id, first_name FROM users ORDER BY clerk_id");
    assert_eq!(rows, [["user_a", "Ada"], ["user_b", "Bob"]]);
    let missing = adopt(host, "no_such_table", &[]);
    assert_eq!(missing.code, Some(78), "{missing:?}");
    assert!(missing.stderr.contains("there is no table no_such_table"), "{missing:?}");
    let no_name = adopt(host, "no such-table", &[]);
    assert!(
        no_name.code == Some(78) && no_name.stderr.contains("there is no table no such-table"),
        "{no_name:?}"
    );
}

fn whatever_clerk_says_is_newer_than_a_row_that_was_adopted(host: &mut Host) {
    let clerk = Clerk::of(host, 2);
    let ids = clerk.users().ids();
    let table = app_table(host, "members");
    host.sql(&format!(
        "CREATE TABLE {table} (clerk_id text, first_name text, created_at text, updated_at text);
         INSERT INTO {table} VALUES ('{}', 'Old', '2031-01-01T00:00:00Z', '2031-01-01T00:00:00Z'),
                                    ('user_1', 'Old', '2024-01-01T00:00:00Z', '2031-01-01T00:00:00Z')",
        ids[0]
    ));
    adopt(host, &table, &[]).succeeded();
    assert_eq!(host.count("users WHERE first_name = 'Old' AND updated_at IS NULL"), 2);
    // A backfill updates one row from the API, and an event older than the application's own time updates the other.
    host.run(&["backfill"]).succeeded();
    assert_eq!(host.count(&format!("users WHERE clerk_id = '{}' AND first_name = 'Old'", ids[0])), 0);
    let service = host.serve();
    let month_ago = milliseconds() - 30 * 86_400_000;
    assert_eq!(service.post(&post(&user("user.updated", "user_1", month_ago, "Ada"))).word(), "applied");
    service.stop();
    assert_eq!(host.value("SELECT first_name FROM users WHERE clerk_id = 'user_1'"), "Ada");
    // Adopting again does not restore the table's values.
    adopt(host, &table, &[]).succeeded();
    assert_eq!(host.count("users WHERE first_name = 'Old'"), 0);
}

fn a_column_that_the_user_names_is_clerks_own_time(host: &mut Host) {
    let table = app_table(host, "members");
    let day_ago = milliseconds() - 86_400_000;
    host.sql(&format!(
        "CREATE TABLE {table} (clerk_id text, first_name text, clerk_time bigint);
         INSERT INTO {table} VALUES ('user_1', 'Ada', {day_ago}), ('user_2', 'Ada', {}), ('user_3', 'Ada', NULL)",
        // A time in the future is not accepted.
        day_ago + 7 * 86_400_000
    ));
    let told = adopt(host, &table, &["--clerk-updated-at", "clerk_time"]).succeeded();
    assert!(told.contains("clerk_time → updated_at"), "{told}");
    let versions = host.sql("SELECT clerk_id, version FROM entity_versions ORDER BY clerk_id");
    assert_eq!(versions, [["user_1", &day_ago.to_string()], ["user_2", "0"], ["user_3", "0"]]);
    let service = host.serve();
    for (user_id, status) in [("user_1", "stale"), ("user_2", "applied"), ("user_3", "applied")] {
        let older = post(&user("user.updated", user_id, day_ago - 1, "Older"));
        assert_eq!(service.post(&older).word(), status, "{user_id}");
    }
    assert_eq!(service.post(&post(&user("user.updated", "user_1", day_ago + 1, "New"))).word(), "applied");
    service.stop();
}

fn nobody_comes_alive_whom_the_table_calls_deleted(host: &mut Host) {
    let boolean = host.keeper == Keeper::Postgres;
    let marks: &[(&str, &str, &str, bool)] = &[
        ("\"deletedAt\"", "timestamp", "'2024-03-01 00:00:00'", true),
        ("deleted_at", "bigint", "1709251200000", true),
        ("\"isDeleted\"", "boolean", if boolean { "true" } else { "1" }, true),
        ("is_deleted", "text", "'true'", true),
        ("deleted", "integer", "1", true),
        ("status", "text", "'deleted'", true),
        ("\"accountStatus\"", "text", "'DELETED'", true),
        ("is_active", "boolean", if boolean { "false" } else { "0" }, false),
        ("\"isActive\"", "integer", "0", false),
        ("active", "text", "'false'", false),
        ("status", "text", "'inactive'", false),
        ("archived_at", "timestamp", "'2024-03-01 00:00:00'", false),
    ];
    let service = host.serve();
    for (number, (column, kind, value, is_plain)) in (1..).zip(marks) {
        let name = app_table(host, &format!("t{number}"));
        let id = id(number);
        host.sql(&format!(
            "CREATE TABLE {name} (clerk_id text, email text, {column} {kind});
             INSERT INTO {name} VALUES ('{id}', 'gone@example.com', {value})"
        ));
        let told = adopt(host, &name, &["--dry-run"]).succeeded();
        assert!(told.contains("0  would be copied") && told.contains(&id), "{column}: {told}");
        assert!(told.contains(column.trim_matches('"')), "{told}");
        let told = adopt(host, &name, &[]).succeeded();
        assert!(told.contains("0  copied") && told.contains(&id), "{column}: {told}");
        assert_eq!(host.count("users"), 0, "{column}");
        assert_eq!(
            host.count(&format!("entity_versions WHERE clerk_id = '{id}' AND deleted")),
            usize::from(*is_plain)
        );
        if *is_plain {
            let late = post(&user("user.updated", &id, milliseconds() - 86_400_000, "Ghost"));
            assert_eq!(service.post(&late).word(), "stale", "{column}");
        }
    }
    // Ids that the application rewrote on deletion.
    let name = app_table(host, "rewritten");
    let ids = [
        format!("deleted_{}", id(90)),
        format!("{}_deleted", id(91)),
        format!("{}-1709251200", id(92)),
        format!("DELETED:{}", id(93)),
    ];
    host.sql(&format!("CREATE TABLE {name} (clerk_id text, email text)"));
    for id in &ids {
        host.sql(&format!("INSERT INTO {name} VALUES ('{id}', 'gone@example.com')"));
    }
    for options in [&["--dry-run"][..], &[]] {
        let told = adopt(host, &name, options).succeeded();
        assert!(told.contains("4  left out: the id is not one of Clerk's user ids"), "{told}");
        assert!(ids.iter().all(|id| told.contains(id)), "{told}");
    }
    assert_eq!(host.count("users"), 0);
    service.stop();
}

fn who_is_deleted_is_said_by_a_condition_where_no_column_says_it_plainly(host: &mut Host) {
    let table = app_table(host, "members");
    host.sql(&format!(
        "CREATE TABLE {table} (clerk_id text, plan text, active integer, deleted integer);
         INSERT INTO {table} VALUES ('user_1', 'gone', 1, 0), ('user_2', 'free', 0, 0), ('user_3', 'free', 1, 1),
                                    ('user_4', 'free', 1, 0), ('user_5', NULL, 1, 0)"
    ));
    let told = adopt(host, &table, &["--deleted-when", "plan = 'gone' OR active = 0"]).succeeded();
    assert!(told.contains("2  copied") && told.contains("2  deleted according to the table"), "{told}");
    // What a column alone says is no more than a doubt then.
    assert!(told.contains("1  left out: deleted may mark the user as deleted"), "{told}");
    assert_eq!(host.sql("SELECT clerk_id FROM users ORDER BY 1"), [["user_4"], ["user_5"]]);
    let buried = host.sql("SELECT clerk_id FROM entity_versions WHERE deleted ORDER BY 1");
    assert_eq!(buried, [["user_1"], ["user_2"]]);
    let wrong = adopt(host, &table, &["--deleted-when", "no_such_column = 1"]);
    assert_eq!(wrong.code, Some(78), "{wrong:?}");
    assert!(wrong.stderr.contains("--deleted-when"), "{wrong:?}");
    for more in ["DELETE FROM", "DROP TABLE"] {
        let more = format!("1 = 0); {more} {table}; --");
        assert_eq!(adopt(host, &table, &["--dry-run", "--deleted-when", &more]).code, Some(78), "{more}");
        assert_eq!(host.count(&table), 5, "{more}");
    }
}

fn who_is_known_here_is_left_as_they_are(host: &mut Host) {
    let service = host.serve();
    let at = milliseconds() - 5000;
    assert_eq!(service.post(&post(&user("user.created", "user_1", at, "Ada"))).word(), "applied");
    assert_eq!(service.post(&post(&user("user.created", "user_2", at, "Bob"))).word(), "applied");
    assert_eq!(service.post(&post(&deletion("user_3", at))).word(), "applied");
    service.stop();
    host.sql("INSERT INTO users (clerk_id, first_name) VALUES ('user_4', 'By hand')");
    let table = app_table(host, "members");
    host.sql(&format!(
        "CREATE TABLE {table} (clerk_id text, first_name text, deleted_at text);
         INSERT INTO {table} VALUES ('user_1', 'Old', NULL), ('user_2', 'Old', '2024-01-01'), ('user_3', 'Old', NULL),
                                    ('user_4', 'Old', NULL), ('user_5', 'New', NULL)"
    ));
    let before = host.sql("SELECT clerk_id, first_name FROM users WHERE clerk_id <> 'user_5' ORDER BY 1");
    for (options, copied) in
        [(&["--dry-run"][..], "1  would be copied"), (&[], "1  copied"), (&[], "0  copied")]
    {
        let told = adopt(host, &table, options).succeeded();
        assert!(told.contains(copied) && told.contains("already here"), "{told}");
        assert!(
            told.contains("1  deleted according to the table, but not deleted here")
                && told.contains("user_2"),
            "{told}"
        );
        let after = host.sql("SELECT clerk_id, first_name FROM users WHERE clerk_id <> 'user_5' ORDER BY 1");
        assert_eq!(after, before);
    }
}

fn the_column_with_clerks_ids_is_found_by_what_is_in_it(host: &mut Host) {
    for (number, column) in [
        "id",
        "auth_id",
        "authId",
        "external_id",
        "clerkUserId",
        "clerk_user_id",
        "clerkId",
        "user_id",
        "who",
    ]
    .into_iter()
    .enumerate()
    {
        let name = app_table(host, &format!("t{number}"));
        host.sql(&format!(
            "CREATE TABLE {name} (\"{column}\" text, email text, username text);
             INSERT INTO {name} VALUES ('{}', 'a@example.com', 'user_1')",
            id(u32::try_from(number).unwrap())
        ));
        let told = adopt(host, &name, &["--dry-run"]).succeeded();
        assert!(
            told.contains("1  would be copied") && told.contains(&format!("{column} → clerk_id")),
            "{told}"
        );
        assert!(!told.contains("→ external_id"), "{told}");
    }
}

fn where_it_is_not_plain_which_column_has_the_ids_the_user_is_asked(host: &mut Host) {
    let table = app_table(host, "members");
    host.sql(&format!(
        "CREATE TABLE {table} (auth_id text, manager_id text, email text);
         INSERT INTO {table} VALUES ('{}', '{}', 'a@example.com')",
        id(1),
        id(2)
    ));
    let asked = adopt(host, &table, &["--dry-run"]);
    assert_eq!(asked.code, Some(78), "{asked:?}");
    for word in ["auth_id, manager_id", "--id-column auth_id"] {
        assert!(asked.stderr.contains(word), "{asked:?}");
    }
    adopt(host, &table, &["--id-column", "auth_id"]).succeeded();
    assert_eq!(host.sql("SELECT clerk_id FROM users"), [[id(1)]]);
    // A column with ids of other users is never used as the row's own id.
    let table = app_table(host, "posts");
    host.sql(&format!(
        "CREATE TABLE {table} (id integer, created_by text); INSERT INTO {table} VALUES (1, '{}')",
        id(3)
    ));
    let asked = adopt(host, &table, &["--dry-run"]);
    assert!(asked.code == Some(78) && asked.stderr.contains("--id-column created_by"), "{asked:?}");
    // Some tables have no such column.
    let table = app_table(host, "without");
    host.sql(&format!(
        "CREATE TABLE {table} (id integer, email text); INSERT INTO {table} VALUES (1, 'a@example.com')"
    ));
    for options in [&["--dry-run"][..], &["--id-column", "nothing"]] {
        let asked = adopt(host, &table, options);
        assert!(asked.code == Some(78) && asked.stderr.contains("--id-column"), "{asked:?}");
        assert!(asked.stderr.contains("id, email"), "{asked:?}");
    }
}

fn columns_that_look_like_ours_are_named_and_read_if_the_user_says_so(host: &mut Host) {
    host.set("SYNC_FIELDS", "email,first_name,image_url,phone_number");
    let table = app_table(host, "members");
    host.sql(&format!(
        "CREATE TABLE {table} (clerk_id text, email text, name text, first_name text, phone text, avatar text, banned text, joined_at text);
         INSERT INTO {table} VALUES ('user_1', 'a@example.com', 'Ada L', '', '+49301', 'https://x', 'no', '2024-01-01T00:00:00Z')"
    ));
    let told = adopt(host, &table, &["--dry-run"]).succeeded();
    for words in [
        "name: looks like first_name and last_name in one",
        "phone: looks like phone_number: use --column phone_number=phone",
        "avatar: looks like image_url: use --column image_url=avatar",
        "banned: looks like banned, which is not in SYNC_FIELDS",
        "joined_at: looks like created_at: use --column created_at=joined_at",
        "Not read because empty in every row: first_name",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let columns = [
        "--column",
        "phone_number=phone",
        "--column",
        "image_url=avatar",
        "--column",
        "created_at=joined_at",
    ];
    let told = adopt(host, &table, &columns).succeeded();
    assert!(told.contains("phone → phone_number") && !told.contains("phone: looks"), "{told}");
    let rows = host.sql("SELECT phone_number, image_url FROM users WHERE created_at IS NOT NULL");
    assert_eq!(rows, [["+49301", "https://x"]]);
    for (wrong, code, words) in [
        ("phone_number=nothing", 78, "has no column nothing"),
        ("wrong=phone", 78, "phone_number"),
        ("updated_at=joined_at", 78, "--clerk-updated-at joined_at"),
        ("phone_number", 2, "phone_number=phone"),
    ] {
        let refused = adopt(host, &table, &["--column", wrong]);
        assert!(refused.code == Some(code) && refused.stderr.contains(words), "{refused:?}");
    }
}

fn times_without_a_zone_are_read_in_the_zone_that_is_named(host: &mut Host) {
    let created = |host: &Host, user: &str| {
        let time = host.value(&format!("SELECT created_at FROM users WHERE clerk_id = '{user}'"));
        time.replace('T', " ").get(..19).map(str::to_owned)
    };
    let noon = "'2024-07-01 12:00:00'";
    let table = app_table(host, "members");
    host.sql(&format!(
        "CREATE TABLE {table} (clerk_id text, created_at {});
         INSERT INTO {table} VALUES ('user_1', {noon})",
        // MySQL's `timestamp` has a time zone.
        if host.keeper.is_mysql() { "datetime" } else { "timestamp" }
    ));
    let told = adopt(host, &table, &["--time-zone", "Europe/Berlin"]).succeeded();
    assert!(told.contains("The times in created_at have no zone, and were read as Europe/Berlin."), "{told}");
    assert_eq!(created(host, "user_1").as_deref(), Some("2024-07-01 10:00:00"));
    let refused = adopt(host, &table, &["--time-zone", "Berlin"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("IANA"), "{refused:?}");

    // Without an option, the zone is the one in which the database writes for the table's owner.
    host.sql(&format!("UPDATE {table} SET clerk_id = 'user_2'"));
    if host.keeper == Keeper::Postgres {
        let owner = format!("{}_owner", host.schema);
        host.sql(&format!(
            "CREATE ROLE {owner}; ALTER ROLE {owner} SET timezone = 'America/New_York'; ALTER TABLE {table} OWNER TO {owner}"
        ));
        let told = adopt(host, &table, &[]).succeeded();
        host.sql(&format!("DROP OWNED BY {owner}; DROP ROLE {owner}"));
        assert!(told.contains("America/New_York, the zone of the database"), "{told}");
        assert_eq!(created(host, "user_2").as_deref(), Some("2024-07-01 16:00:00"));
    } else {
        adopt(host, &table, &[]).succeeded();
        assert_eq!(created(host, "user_2").as_deref(), Some("2024-07-01 12:00:00"));
    }
}

fn rows_of_one_id_are_one_user(host: &mut Host) {
    let table = app_table(host, "members");
    host.sql(&format!(
        "CREATE TABLE {table} (clerk_id text, email text, deleted_at text);
         INSERT INTO {table} VALUES ('user_1', 'a@example.com', NULL), ('user_1', 'b@example.com', NULL),
             ('user_2', NULL, '2024-01-01'), ('user_2', 'c@example.com', NULL),
             ('user_3', NULL, '2024-01-01'), ('user_3', NULL, '2024-01-02'), ('', NULL, NULL)"
    ));
    let told = adopt(host, &table, &[]).succeeded();
    for words in [
        "1  copied",
        "1  deleted according to the table",
        "1  left out: one row marks the user as deleted, and another row does not",
        "1  rows skipped: another row has the same Clerk id",
        "1  rows skipped: they have no Clerk id",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(host.sql("SELECT clerk_id FROM users"), [["user_1"]]);
}

fn what_is_printed_about_a_table_of_another_tool_can_be_followed_word_by_word(host: &mut Host) {
    let theirs =
        if host.keeper == Keeper::Postgres { format!("{}.users", host.schema) } else { "users".to_owned() };
    if host.keeper == Keeper::Postgres {
        host.sql(&format!("CREATE SCHEMA {}", host.schema));
    }
    // A table that a connector copied: Clerk's own names, unix milliseconds, and the connector's deletion mark.
    host.sql(&format!(
        "CREATE TABLE {theirs} (id {} PRIMARY KEY, first_name text, last_name text, email_addresses text,
             created_at bigint, updated_at bigint, _fivetran_deleted integer);
         CREATE INDEX users_email ON {theirs} (created_at);
         INSERT INTO {theirs} VALUES ('{}', 'Ada', 'Lovelace', '[]', 1704067200000, 1704067200000, 0),
                                     ('{}', 'Gone', 'Lovelace', '[]', 1704067200000, 1704067200000, 1)",
        host.key_type(),
        id(1),
        id(2)
    ));
    let refused = host.run(&["serve"]);
    assert_eq!(refused.code, Some(78), "{refused:?}");
    let advice = refused.stderr.replace('\n', " ");
    let between =
        |from: &str, to: &str| advice.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    // If the operator adopts before the first start, the command prints the same advice.
    let too_early = adopt(host, &theirs, &["--dry-run"]);
    let from = if host.keeper == Keeper::Postgres {
        assert_eq!(too_early.code, Some(78), "{too_early:?}");
        let schema = between("DATABASE_SCHEMA=", " ");
        assert!(too_early.stderr.contains(&format!("DATABASE_SCHEMA={schema}")), "{too_early:?}");
        // The suggested name is free in this database, but other tests would use it too.
        host.set("DATABASE_SCHEMA", &format!("{}_{schema}", host.schema));
        between("--from ", " --dry-run")
    } else if host.keeper.is_mysql() {
        host.sql(&between("a separate one: run ", ";"));
        host.set("DATABASE_URL", &format!("{}_clerk", host.get("DATABASE_URL")));
        between("--from ", " --dry-run")
    } else {
        host.sql(&between("run in this file: ", " To import"));
        between("--from ", " --dry-run")
    };
    assert!(advice.contains(&format!("clerk-sync migrate adopt --from {from} --dry-run`")), "{advice}");
    let told = adopt(host, &from, &["--dry-run"]).succeeded();
    assert!(told.contains("1  would be copied") && told.contains("id → clerk_id"), "{told}");
    assert!(told.contains("email_addresses: looks like email"), "{told}");
    adopt(host, &from, &[]).succeeded();
    let service = host.serve();
    let late = milliseconds() - 86_400_000;
    assert_eq!(service.post(&post(&user("user.updated", &id(1), late, "Augusta"))).word(), "applied");
    assert_eq!(service.post(&post(&user("user.updated", &id(2), late, "Ghost"))).word(), "stale");
    service.stop();
}
