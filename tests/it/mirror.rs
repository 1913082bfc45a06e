//! MongoDB collections as SQLite tables, so that tests can query MongoDB with the same SQL as the other databases.
//!
//! An embedded SQLite database has our tables, without triggers and foreign keys. Before a statement runs, the collections that
//! it names are copied into these tables. After a statement that writes, the changed rows are written back to the documents.
//! Fields of a document that are not columns stay as they are. A table that a test creates exists only in SQLite, and a column
//! that a test adds to one of our tables is a field of that name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use clerk_sync::{
    entity::{self, USER},
    model::{Anonymized, Entity, Field},
    store::schema::{self, ColumnType, TABLES, Table},
};
use mongodb::{
    Database, IndexModel,
    bson::{self, Binary, Bson, Document, doc, spec::BinarySubtype},
    options::{Collation, CollationStrength, IndexOptions},
};
use serde_json::{Map, Value as Json};
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions, Row, SqliteConnection, TypeInfo, ValueRef,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous},
};
use tokio::sync::Mutex;

pub(crate) struct Mirror {
    collections: Database,
    /// `TABLE_PREFIX`. The tables in the mirror have no prefix.
    prefix: String,
    tables: Mutex<SqliteConnection>,
    known: Vec<Known>,
}

/// One of our tables.
struct Known {
    name: &'static str,
    columns: Vec<(&'static str, ColumnType)>,
    /// The kind of its rows, if they are synced objects.
    entity: Option<&'static Entity>,
}

impl Known {
    fn new(table: Table, entity: Option<&'static Entity>) -> Self {
        Self { name: table.name, columns: table.columns, entity }
    }
}

/// A column of a table, and the path of its value in a document.
struct Column {
    name: String,
    path: String,
    /// `None` if the application added the column.
    kind: Option<ColumnType>,
    is_key: bool,
    not_null: bool,
}

/// Our collections in which every transaction that changes anything may write to an existing document.
const CONTENDED: [&str; 5] =
    ["entity_versions", "webhook_queue", "outbox", "outbox_recipients", "erasure_receipts"];

/// A value as SQLite stores it.
#[derive(Clone, Debug, PartialEq)]
enum Cell {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
    Blob(Vec<u8>),
}

/// Rows by their keys.
type Rows = BTreeMap<String, BTreeMap<String, Cell>>;

impl Mirror {
    /// Open tables in this file for these collections.
    pub(crate) async fn open(file: &Path, collections: Database, prefix: &str) -> Result<Self, sqlx::Error> {
        let mut tables = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .foreign_keys(false)
            .journal_mode(SqliteJournalMode::Memory)
            .synchronous(SqliteSynchronous::Off)
            .busy_timeout(std::time::Duration::from_secs(30))
            .disable_statement_logging()
            .connect()
            .await?;
        let made: i64 =
            sqlx::query_scalar("SELECT count(*) FROM sqlite_master").fetch_one(&mut tables).await?;
        if made == 0 {
            make(&mut tables).await?;
        }
        let entity_of = |table: &Table| entity::ALL.iter().copied().find(|entity| entity.table == table.name);
        let known = TABLES.iter().map(|table| Known::new(table.clone(), entity_of(table))).collect();
        Ok(Self { collections, prefix: prefix.to_owned(), tables: Mutex::new(tables), known })
    }

    /// Add the tables of kinds that only a test declares.
    pub(crate) fn know(&mut self, kinds: &[&'static Entity]) {
        for &entity in kinds {
            if !self.known.iter().any(|known| known.name == entity.table) {
                self.known.push(Known::new(schema::of_objects(entity), Some(entity)));
            }
        }
    }

    /// Insert documents into a collection of the application.
    pub(crate) async fn insert(&self, collection: &str, documents: &[Document]) {
        self.collections.collection::<Document>(collection).insert_many(documents).await.unwrap();
    }

    /// The names of all collections.
    pub(crate) async fn collections(&self) -> Vec<String> {
        self.collections.list_collection_names().await.unwrap()
    }

    /// Run these statements and return their rows.
    pub(crate) async fn run(&self, statements: &str) -> Result<Vec<SqliteRow>, sqlx::Error> {
        let mut tables = self.tables.lock().await;
        let named = self.named(&mut tables, statements).await?;
        for table in &named {
            self.copy(&mut tables, table).await?;
        }
        // The mirror has no triggers and no indexes, see `forget_rules`.
        let text = statements.replace("DROP TRIGGER ", "DROP TRIGGER IF EXISTS ");
        let text =
            text.replace("DROP INDEX ", "DROP INDEX IF EXISTS ").replace("IF EXISTS IF EXISTS", "IF EXISTS");
        let text = sqlx::raw_sql(AssertSqlSafe(text));
        if !writes(statements) {
            return text.fetch_all(&mut *tables).await;
        }
        let mut before = Vec::new();
        for table in &named {
            before.push(rows(&mut tables, table).await?);
        }
        let given = text.fetch_all(&mut *tables).await?;
        for (table, before) in named.iter().zip(before) {
            let after = rows(&mut tables, table).await?;
            self.follow(table, &columns(&mut tables, table).await?, &before, after).await.map_err(told)?;
        }
        if words(statements).any(|word| word == "CREATE") {
            forget_rules(&mut tables).await?;
        }
        self.index(statements).await.map_err(told)?;
        Ok(given)
    }

    /// Set a validator on a collection, as an application can; an empty one allows everything.
    pub(crate) async fn validate(&self, table: &str, validator: Document) {
        let name = format!("{}{table}", self.prefix);
        let change = doc! {
            "collMod": name, "validator": validator, "validationLevel": "strict", "validationAction": "error",
        };
        self.collections.run_command(change).await.unwrap();
    }

    /// Delete every document in our collections.
    pub(crate) async fn empty(&self) {
        let made = self.collections.list_collection_names().await.unwrap();
        for table in &self.known {
            let name = format!("{}{}", self.prefix, table.name);
            if made.contains(&name) {
                self.collections.collection::<Document>(&name).delete_many(doc! {}).await.unwrap();
            }
        }
    }

    /// Whether an open transaction writes to one of our documents, or a worker is processing a delivery. Documents that do not
    /// exist yet cannot be checked.
    pub(crate) async fn is_busy(&self) -> bool {
        let leased = doc! { "lease": { "$exists": true } };
        let queue = self.collections.collection::<Document>(&format!("{}webhook_queue", self.prefix));
        if queue.count_documents(leased).await.unwrap() > 0 {
            return true;
        }
        let mut session = self.collections.client().start_session().await.unwrap();
        session.start_transaction().await.unwrap();
        for table in self.known.iter().filter(|table| CONTENDED.contains(&table.name)) {
            let touched = self
                .collection(table)
                .update_many(doc! {}, doc! { "$inc": { "probe": 1 } })
                .session(&mut session)
                .await;
            if touched.is_err() {
                return true;
            }
        }
        _ = session.abort_transaction().await;
        false
    }

    /// Our tables that these statements name directly or through a view.
    async fn named(
        &self,
        tables: &mut SqliteConnection,
        statements: &str,
    ) -> Result<Vec<&Known>, sqlx::Error> {
        let views = "SELECT name FROM sqlite_master WHERE type = 'view'";
        let views: Vec<String> = sqlx::query_scalar(views).fetch_all(&mut *tables).await?;
        let words: BTreeSet<&str> = words(statements).collect();
        let made = "SELECT name FROM sqlite_master WHERE type = 'table'";
        let made: Vec<String> = sqlx::query_scalar(made).fetch_all(tables).await?;
        let reads_view = views.iter().any(|view| words.contains(view.as_str()));
        let is_named = |table: &&Known| {
            made.iter().any(|name| name == table.name)
                && (words.contains(table.name) || (reads_view && table.entity.is_some()))
        };
        Ok(self.known.iter().filter(is_named).collect())
    }

    fn collection(&self, table: &Known) -> mongodb::Collection<Document> {
        self.collections.collection(&format!("{}{}", self.prefix, table.name))
    }

    /// Copy the documents into the rows.
    async fn copy(&self, tables: &mut SqliteConnection, table: &Known) -> Result<(), sqlx::Error> {
        let begin = AssertSqlSafe(format!("BEGIN IMMEDIATE; DELETE FROM {}", table.name));
        sqlx::raw_sql(begin).execute(&mut *tables).await?;
        let copied = self.fill(tables, table).await;
        let end = if copied.is_ok() { "COMMIT" } else { "ROLLBACK" };
        sqlx::raw_sql(end).execute(&mut *tables).await?;
        copied
    }

    async fn fill(&self, tables: &mut SqliteConnection, table: &Known) -> Result<(), sqlx::Error> {
        let columns = columns(tables, table).await?;
        let mut documents = self.collection(table).find(doc! {}).await.map_err(told)?;
        while documents.advance().await.map_err(told)? {
            let document: Document = documents.deserialize_current().map_err(told)?;
            let cells = columns.iter().map(|column| (column, value(&document, &column.path, column.kind)));
            // Columns that are required but null get their default.
            let cells: Vec<(&Column, Cell)> =
                cells.filter(|(column, cell)| !column.not_null || *cell != Cell::Null).collect();
            insert(tables, table.name, &cells).await?;
        }
        Ok(())
    }

    /// Write the changed rows back to the documents.
    async fn follow(
        &self,
        table: &Known,
        columns: &[Column],
        before: &Rows,
        after: Rows,
    ) -> mongodb::error::Result<()> {
        let collection = self.collection(table);
        let filter = |row: &BTreeMap<String, Cell>| -> Document {
            let keys = columns.iter().filter(|column| column.is_key);
            keys.map(|column| (column.path.clone(), column.bson(row.get(&column.name)))).collect()
        };
        for row in before.iter().filter(|(key, _)| !after.contains_key(*key)).map(|(_, row)| row) {
            collection.delete_one(filter(row)).await?;
        }
        let mut new = Vec::new();
        for (key, row) in after {
            let Some(old) = before.get(&key) else {
                let mut document = Document::new();
                if let Some(id) = document_id(table, &row) {
                    document.insert("_id", id);
                }
                for column in columns {
                    let value = column.bson(row.get(&column.name));
                    if let Some((name, value)) = beside(table, column, &value) {
                        document.insert(name, value);
                    }
                    put(&mut document, &column.path, value);
                }
                new.push(document);
                continue;
            };
            let differing = columns.iter().filter(|column| {
                row.get(&column.name).unwrap_or(&Cell::Null) != old.get(&column.name).unwrap_or(&Cell::Null)
            });
            let mut changes = Document::new();
            for column in differing {
                let value = column.bson(row.get(&column.name));
                changes.extend(beside(table, column, &value));
                changes.insert(column.path.clone(), value);
            }
            if !changes.is_empty() {
                collection.update_one(filter(&row), doc! { "$set": changes }).await?;
            }
        }
        if !new.is_empty() {
            collection.insert_many(new).await?;
            self.count_on(table, columns).await?;
        }
        Ok(())
    }

    /// Move the backend's counter past the numbers that a test has used.
    async fn count_on(&self, table: &Known, columns: &[Column]) -> mongodb::error::Result<()> {
        let Some(numbered) = columns.iter().find(|column| column.name == "id" && column.is_number()) else {
            return Ok(());
        };
        let newest = self.collection(table).find_one(doc! {}).sort(doc! { &numbered.path: -1 }).await?;
        let newest = newest.and_then(|newest| newest.get_i64(&numbered.path).ok()).unwrap_or_default();
        // The counter of the audit trail holds the next number; all other counters hold the last one.
        let next = if table.name == "audit_log" { newest + 1 } else { newest };
        let counters = self.collections.collection::<Document>(&format!("{}counters", self.prefix));
        let forward = doc! { "$max": { "next": next } };
        counters.update_one(doc! { "_id": table.name }, forward).upsert(true).await.map(|_| ())
    }

    /// Reset the backend's counter, as after a restore without counters.
    pub(crate) async fn forget_numbers(&self, table: &str) {
        let counters = self.collections.collection::<Document>(&format!("{}counters", self.prefix));
        counters.delete_one(doc! { "_id": table }).await.unwrap();
    }

    /// Create or drop an index on the documents; the rows are only a copy.
    async fn index(&self, statements: &str) -> mongodb::error::Result<()> {
        for statement in statements.split(';') {
            let words: Vec<&str> = statement
                .split(|c: char| !(c.is_alphanumeric() || c == '_'))
                .filter(|word| !word.is_empty())
                .collect();
            match words.as_slice() {
                ["CREATE", "UNIQUE", "INDEX", name, "ON", table, keys @ ..] => {
                    let Some(table) = self.known.iter().find(|known| known.name == *table) else { continue };
                    let entity = table.entity;
                    let (folded, keys): (Vec<&str>, Vec<&str>) =
                        keys.iter().copied().partition(|word| *word == "lower");
                    let paths: Vec<String> = keys.iter().map(|key| path(entity, key)).collect();
                    // As in SQL, several rows without a value are allowed.
                    let there = paths.iter().map(|path| (path.clone(), doc! { "$type": "string" }.into()));
                    let collation = Collation::builder().locale("en").strength(CollationStrength::Secondary);
                    let options = IndexOptions::builder()
                        .name((*name).to_owned())
                        .unique(true)
                        .partial_filter_expression(there.collect::<Document>())
                        .collation((!folded.is_empty()).then(|| collation.build()))
                        .build();
                    let keys = paths.into_iter().map(|path| (path, Bson::Int32(1))).collect::<Document>();
                    let index = IndexModel::builder().keys(keys).options(options).build();
                    self.collection(table).create_index(index).await?;
                }
                ["DROP", "INDEX", name] => {
                    for table in &self.known {
                        let collection = self.collection(table);
                        if collection
                            .list_index_names()
                            .await
                            .is_ok_and(|names| names.iter().any(|known| known == name))
                        {
                            collection.drop_index(*name).await?;
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Create our tables with SQLite's migrations, then drop triggers and indexes, which would interfere with copying.
async fn make(tables: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/sqlite");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    sqlx::raw_sql("BEGIN").execute(&mut *tables).await?;
    for file in files {
        let sql = fs::read_to_string(file).unwrap();
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tables).await?;
    }
    forget_rules(tables).await?;
    sqlx::raw_sql("COMMIT").execute(&mut *tables).await.map(|_| ())
}

/// Drop triggers and indexes, which have no purpose in the mirror.
async fn forget_rules(tables: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let rules = "SELECT 'DROP ' || type || ' \"' || name || '\"' FROM sqlite_master
                 WHERE type IN ('trigger', 'index') AND sql IS NOT NULL";
    let rules: Vec<String> = sqlx::query_scalar(rules).fetch_all(&mut *tables).await?;
    for statement in rules {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *tables).await?;
    }
    Ok(())
}

fn words(statements: &str) -> impl Iterator<Item = &str> {
    statements.split(|c: char| !(c.is_alphanumeric() || c == '_'))
}

/// Whether these statements change data.
fn writes(statements: &str) -> bool {
    words(statements)
        .any(|word| ["INSERT", "UPDATE", "DELETE", "REPLACE", "ALTER", "CREATE", "DROP"].contains(&word))
}

/// The path of a column's value in a document, see docs/mongodb.md.
fn path(entity: Option<&Entity>, column: &str) -> String {
    let Some(entity) = entity else { return column.to_owned() };
    match column {
        "id" => "number".to_owned(),
        "first_name" | "last_name" | "image_url" if entity.kind == USER.kind => {
            format!("profile.{}", camel(column))
        }
        "public_metadata" | "private_metadata" | "unsafe_metadata" if entity.kind == USER.kind => {
            format!("metadata.{}", column.trim_end_matches("_metadata"))
        }
        column => camel(column),
    }
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        let (initial, rest) = part.split_at(part.len().min(1));
        name + &initial.to_ascii_uppercase() + rest
    })
}

async fn columns(tables: &mut SqliteConnection, table: &Known) -> Result<Vec<Column>, sqlx::Error> {
    let query = r#"SELECT name, pk, "notnull" FROM pragma_table_info(?)"#;
    let found = sqlx::query(query).bind(table.name).fetch_all(tables).await?;
    let column = |row: &SqliteRow| {
        let name: String = row.get("name");
        let kind = table.columns.iter().find(|(ours, _)| *ours == name).map(|(_, kind)| *kind);
        let path = if kind.is_some() { path(table.entity, &name) } else { name.clone() };
        Column {
            path,
            kind,
            is_key: row.get::<i64, _>("pk") > 0,
            not_null: row.get::<i64, _>("notnull") > 0,
            name,
        }
    };
    Ok(found.iter().map(column).collect())
}

/// The rows of a table by key.
async fn rows(tables: &mut SqliteConnection, table: &Known) -> Result<Rows, sqlx::Error> {
    let columns = columns(tables, table).await?;
    let query = AssertSqlSafe(format!("SELECT * FROM {}", table.name));
    let found = sqlx::query(query).persistent(false).fetch_all(tables).await?;
    let row = |row: &SqliteRow| {
        let cells: BTreeMap<String, Cell> = row
            .columns()
            .iter()
            .map(|column| (column.name().to_owned(), cell(row, column.ordinal())))
            .collect();
        let keys = columns.iter().filter(|column| column.is_key).map(|column| &cells[&column.name]);
        (format!("{:?}", keys.collect::<Vec<_>>()), cells)
    };
    Ok(found.iter().map(row).collect())
}

fn cell(row: &SqliteRow, place: usize) -> Cell {
    let raw = row.try_get_raw(place).unwrap();
    if raw.is_null() {
        return Cell::Null;
    }
    match raw.type_info().name() {
        "INTEGER" => Cell::Int(row.get_unchecked(place)),
        "REAL" => Cell::Real(row.get_unchecked(place)),
        "BLOB" => Cell::Blob(row.get_unchecked(place)),
        _ => Cell::Text(row.get_unchecked(place)),
    }
}

async fn insert(
    tables: &mut SqliteConnection,
    table: &str,
    cells: &[(&Column, Cell)],
) -> Result<(), sqlx::Error> {
    let names: Vec<String> = cells.iter().map(|(column, _)| format!("\"{}\"", column.name)).collect();
    let places = vec!["?"; names.len()].join(", ");
    let text = format!("INSERT INTO {table} ({}) VALUES ({places})", names.join(", "));
    let mut query = sqlx::query(AssertSqlSafe(text));
    for (_, cell) in cells {
        query = match cell {
            Cell::Null => query.bind(None::<i64>),
            Cell::Int(number) => query.bind(*number),
            Cell::Real(number) => query.bind(*number),
            Cell::Text(text) => query.bind(text.clone()),
            Cell::Blob(bytes) => query.bind(bytes.clone()),
        };
    }
    query.execute(tables).await.map(|_| ())
}

/// The value of a document at a path, as SQLite stores it.
fn value(document: &Document, path: &str, kind: Option<ColumnType>) -> Cell {
    let found = match path.split_once('.') {
        Some((outer, inner)) => document.get_document(outer).ok().and_then(|inside| inside.get(inner)),
        None => document.get(path),
    };
    let is_json = matches!(kind, Some(ColumnType::Json | ColumnType::TextArray));
    match found {
        None | Some(Bson::Null) => Cell::Null,
        // JSON that BSON cannot hold is stored as text.
        Some(Bson::String(text)) => Cell::Text(text.clone()),
        Some(value) if is_json => Cell::Text(json(value)),
        Some(Bson::Boolean(truth)) => Cell::Int(i64::from(*truth)),
        Some(Bson::Int32(number)) => Cell::Int(i64::from(*number)),
        Some(Bson::Int64(number)) => Cell::Int(*number),
        Some(Bson::Double(number)) => Cell::Real(*number),
        Some(Bson::DateTime(time)) => Cell::Text(written(*time)),
        Some(Bson::Binary(binary)) => Cell::Blob(binary.bytes.clone()),
        Some(other) => Cell::Text(json(other)),
    }
}

fn written(time: bson::DateTime) -> String {
    let time = DateTime::from_timestamp_millis(time.timestamp_millis());
    time.map_or_else(String::new, |time| time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string())
}

/// A value as JSON, with its members in their order.
fn json(value: &Bson) -> String {
    let text = |text: &str| Json::String(text.to_owned()).to_string();
    match value {
        Bson::Null => "null".to_owned(),
        Bson::Boolean(truth) => truth.to_string(),
        Bson::Int32(number) => number.to_string(),
        Bson::Int64(number) => number.to_string(),
        Bson::Double(number) => {
            serde_json::Number::from_f64(*number).map_or_else(String::new, |it| it.to_string())
        }
        Bson::String(it) => text(it),
        Bson::DateTime(time) => text(&written(*time)),
        Bson::Array(values) => format!("[{}]", values.iter().map(json).collect::<Vec<_>>().join(",")),
        Bson::Document(members) => {
            let members = members.iter().map(|(name, value)| format!("{}:{}", text(name), json(value)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        other => text(&other.to_string()),
    }
}

impl Column {
    fn is_number(&self) -> bool {
        matches!(self.kind, Some(ColumnType::BigInt))
    }

    /// A value as the backend writes it.
    fn bson(&self, cell: Option<&Cell>) -> Bson {
        match (self.kind, cell.unwrap_or(&Cell::Null)) {
            (_, Cell::Null) => Bson::Null,
            (Some(ColumnType::Time), Cell::Text(text)) => time(text).map_or_else(
                || text.clone().into(),
                |time| bson::DateTime::from_millis(time.timestamp_millis()).into(),
            ),
            (Some(ColumnType::Bool), Cell::Int(number)) => Bson::Boolean(*number != 0),
            (Some(ColumnType::Json | ColumnType::TextArray), Cell::Text(text)) => {
                serde_json::from_str(text).map_or_else(|_| text.clone().into(), of_json)
            }
            (Some(ColumnType::Bytes), Cell::Text(text)) => bytes(text.clone().into_bytes()),
            (_, Cell::Blob(blob)) => bytes(blob.clone()),
            (_, Cell::Int(number)) => Bson::Int64(*number),
            (_, Cell::Real(number)) => Bson::Double(*number),
            (_, Cell::Text(text)) => Bson::String(text.clone()),
        }
    }
}

fn bytes(bytes: Vec<u8>) -> Bson {
    Binary { subtype: BinarySubtype::Generic, bytes }.into()
}

/// Parse a time in any of the formats that tests use.
fn time(text: &str) -> Option<DateTime<Utc>> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.to_utc());
    }
    let naive = |format: &str| NaiveDateTime::parse_from_str(text, format).ok();
    let naive = naive("%Y-%m-%dT%H:%M:%S%.f").or_else(|| naive("%Y-%m-%d %H:%M:%S%.f"));
    let naive = naive.or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0));
    naive.map(|time| time.and_utc())
}

fn of_json(value: Json) -> Bson {
    match value {
        Json::Null => Bson::Null,
        Json::Bool(truth) => Bson::Boolean(truth),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => i32::try_from(whole).map_or(Bson::Int64(whole), Bson::Int32),
            (None, Some(float)) => Bson::Double(float),
            (None, None) => Bson::String(number.to_string()),
        },
        Json::String(text) => Bson::String(text),
        Json::Array(values) => Bson::Array(values.into_iter().map(of_json).collect()),
        Json::Object(members) => Bson::Document(of_members(members)),
    }
}

fn of_members(members: Map<String, Json>) -> Document {
    members.into_iter().map(|(name, value)| (name, of_json(value))).collect()
}

/// Set the value at a path.
fn put(document: &mut Document, path: &str, value: Bson) {
    let Some((outer, inner)) = path.split_once('.') else {
        document.insert(path, value);
        return;
    };
    match document.get_mut(outer) {
        Some(Bson::Document(inside)) => _ = inside.insert(inner, value),
        _ => _ = document.insert(outer, doc! { inner: value }),
    }
}

/// The `_id` of a new document, if the backend finds the document by it.
fn document_id(table: &Known, row: &BTreeMap<String, Cell>) -> Option<Bson> {
    let text = |name: &str| match &row[name] {
        Cell::Text(text) => text.clone(),
        other => panic!("{name} is {other:?}"),
    };
    let number = |name: &str| match &row[name] {
        Cell::Int(number) => *number,
        other => panic!("{name} is {other:?}"),
    };
    Some(match table.name {
        "processed_webhooks" | "webhook_queue" => text("svix_id").into(),
        "entity_versions" => format!("{}/{}", text("kind"), text("clerk_id")).into(),
        "audit_log" | "outbox" => number("id").into(),
        "audit_actors" => number("audit_id").into(),
        "audit_seals" => number("number").into(),
        "outbox_recipients" => format!("{}/{}", text("sink"), text("clerk_id")).into(),
        "outbox_sinks" | "outbox_paused" => text("sink").into(),
        "erasure_receipts" => format!("{}/{}", text("destination"), text("clerk_id")).into(),
        "sync_runs" => text("id").into(),
        "activity" => {
            let at = time(&text("at")).map_or(0, |at| at.timestamp_millis());
            format!("{at} {} {} {}", text("event"), text("outcome"), text("reason")).into()
        }
        "clerk_instance" => "one".into(),
        "leases" => text("name").into(),
        _ => return None,
    })
}

/// A field that the backend writes in addition to a column: the address in lower case, or the length of a body.
fn beside(table: &Known, column: &Column, value: &Bson) -> Option<(String, Bson)> {
    let is_address = table.entity.is_some_and(|entity| entity.named(&column.name).is_some_and(is_address));
    match value {
        _ if is_address => {
            Some((format!("{}Folded", column.path), value.as_str().map(str::to_lowercase).into()))
        }
        Bson::Binary(binary) if table.name == "webhook_queue" => {
            Some(("bytes".to_owned(), i64::try_from(binary.bytes.len()).unwrap().into()))
        }
        _ => None,
    }
}

fn is_address(field: Field) -> bool {
    field.is_address || field.anonymized == Anonymized::Address
}

fn told(error: impl std::fmt::Display) -> sqlx::Error {
    sqlx::Error::Protocol(error.to_string())
}
