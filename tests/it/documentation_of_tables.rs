//! `docs/schema.md`: its lists of columns and its models for Prisma and Drizzle are generated from the tables' declarations.
//!
//! `UPDATE_DOCS=1 cargo nextest run documentation` writes them. The descriptions of columns stay as they are.

use std::{collections::HashMap, fs, path::Path};

use clerk_sync::{
    entity,
    model::Entity,
    store::schema::{self, ColumnType, TABLES, Table},
};

#[test]
fn the_page_of_the_tables_is_what_the_declarations_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/schema.md");
    let written = fs::read_to_string(&path).unwrap();
    let mut page = written.clone();
    for table in TABLES.iter() {
        page = with_columns(&page, table);
    }
    for entity in entity::ALL {
        let table = schema::of_objects(entity);
        let model = format!("\nmodel {} {{\n", pascal(entity.kind));
        page = replaced(
            &page,
            &model,
            |line| line.starts_with("  ") && !is_attribute(line),
            &prisma(entity, &table),
        );
        let model = format!(
            "\nexport const {} = pgSchema(\"clerk\").table(\n  \"{}\",\n  {{\n",
            camel(table.name),
            table.name
        );
        page = replaced(&page, &model, |line| line.starts_with("    "), &drizzle(&table));
    }
    let names = TABLES.iter().map(|table| table.name).chain(["_clerk_sync_migrations"]);
    // Prisma treats a table that is not in this list as drift and demands a reset.
    let external: Vec<String> = names.map(|name| format!("      \"clerk.{name}\",\n")).collect();
    let external = external.concat();
    page = replaced(&page, "\n    external: [\n", |line| line.starts_with("      "), &external);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
        return;
    }
    let differs = page.lines().zip(written.lines()).find(|(made, written)| made != written);
    assert!(
        page == written,
        "docs/schema.md is out of date, at {differs:?}: run UPDATE_DOCS=1 cargo nextest run documentation"
    );
}

/// The page with the lines after this heading replaced, up to the first line of another form.
fn replaced(page: &str, heading: &str, of_form: impl Fn(&str) -> bool, by: &str) -> String {
    let (before, rest) =
        page.split_once(heading).unwrap_or_else(|| panic!("docs/schema.md has no {:?}", heading.trim()));
    let replaced: usize = rest.split_inclusive('\n').take_while(|line| of_form(line)).map(str::len).sum();
    [before, heading, by, &rest[replaced..]].concat()
}

/// The page with the columns of this table. Each keeps its description.
fn with_columns(page: &str, table: &Table) -> String {
    let section = format!("\n### `{}`\n", table.name);
    let (_, rest) = page
        .split_once(&section)
        .unwrap_or_else(|| panic!("docs/schema.md does not describe table {}", table.name));
    let head = "| column | type | |\n|---|---|---|\n";
    let (text, rest) = rest.split_once(head).unwrap();
    let told: HashMap<&str, &str> = rest
        .lines()
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `")?.split_once("` |")?;
            Some((name, rest.split_once('|')?.1.trim_end_matches('|').trim()))
        })
        .collect();
    let line = |(name, kind): &(&str, ColumnType)| {
        let said =
            told.get(name).filter(|said| !said.is_empty()).map_or(String::new(), |said| format!("{said} "));
        format!("| `{name}` | {} | {said}|\n", in_postgres(*kind))
    };
    let columns: String = table.columns.iter().map(line).collect();
    replaced(page, &[&section, text, head].concat(), |line| line.starts_with('|'), &columns)
}

/// The fields of a Prisma model, as `prisma format` lays them out.
fn prisma(entity: &Entity, table: &Table) -> String {
    let rows: Vec<[String; 3]> = table
        .columns
        .iter()
        .map(|(column, kind)| {
            let name = camel(column);
            let is_required = ["id", "clerk_id", "preferences"].contains(column);
            let optional = if is_required { "" } else { "?" };
            let mut attributes = match *column {
                "id" => vec!["@id @default(autoincrement())".to_owned()],
                "clerk_id" => vec![format!("@unique(map: \"{}_clerk_id_key\")", entity.table)],
                "preferences" => vec!["@default(\"{}\")".to_owned()],
                _ => Vec::new(),
            };
            if name != *column {
                attributes.push(format!("@map(\"{column}\")"));
            }
            if *kind == ColumnType::Time {
                attributes.push("@db.Timestamptz(6)".to_owned());
            }
            [name, format!("{}{optional}", in_prisma(*kind)), attributes.join(" ")]
        })
        .collect();
    let width = |cell: usize| rows.iter().map(|row| row[cell].len()).max().unwrap_or_default();
    let (names, types) = (width(0), width(1));
    let line = |[name, kind, attributes]: &[String; 3]| {
        format!("  {name:names$} {kind:types$} {attributes}").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn is_attribute(line: &str) -> bool {
    line.trim_start().starts_with("@@")
}

/// The columns of a table for Drizzle.
fn drizzle(table: &Table) -> String {
    let line = |(column, kind): &(&str, ColumnType)| {
        let called = match kind {
            ColumnType::BigInt => format!("bigint(\"{column}\", {{ mode: \"number\" }})"),
            ColumnType::Bool => format!("boolean(\"{column}\")"),
            ColumnType::Time => format!("time(\"{column}\")"),
            ColumnType::Json => format!("jsonb(\"{column}\")"),
            _ => format!("text(\"{column}\")"),
        };
        let more = match *column {
            "id" => ".primaryKey().generatedByDefaultAsIdentity()".to_owned(),
            "clerk_id" => format!(".notNull().unique(\"{}_clerk_id_key\")", table.name),
            "preferences" => ".notNull().default({})".to_owned(),
            _ => String::new(),
        };
        format!("    {}: {called}{more},\n", camel(column))
    };
    table.columns.iter().map(line).collect()
}

fn in_postgres(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::BigInt => "bigint",
        ColumnType::Int => "integer",
        ColumnType::Text => "text",
        ColumnType::Bool => "boolean",
        ColumnType::Time => "timestamptz",
        ColumnType::Json => "jsonb",
        ColumnType::Bytes => "bytea",
        ColumnType::TextArray => "text[]",
    }
}

fn in_prisma(kind: ColumnType) -> &'static str {
    match kind {
        ColumnType::BigInt => "BigInt",
        ColumnType::Bool => "Boolean",
        ColumnType::Time => "DateTime",
        ColumnType::Json => "Json",
        _ => "String",
    }
}

/// `OrganizationMembership`
fn pascal(name: &str) -> String {
    name.split('_').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

/// `organizationMemberships`
fn camel(name: &str) -> String {
    let name = pascal(name);
    name[..1].to_lowercase() + &name[1..]
}
