//! Reading an application's collection, for `migrate adopt`.

use std::{collections::BTreeMap, sync::Arc};

use mongodb::bson::{Bson, Document, doc};

use super::{
    objects::json,
    session::{Alone, Commands as _, Server},
};
use crate::store::{ForeignColumn, ForeignReading, ForeignRow, ForeignTable, Result, StoreError, prefix};

/// Calls `found` with each path of a document and its value. Nested documents contribute the paths of their fields.
fn flat(document: &Document, before: &str, found: &mut impl FnMut(String, &Bson)) {
    for (name, value) in document {
        match value {
            Bson::Document(inner) => flat(inner, &format!("{before}{name}."), found),
            value => found(format!("{before}{name}"), value),
        }
    }
}

fn text(value: &Bson) -> Option<String> {
    match value {
        Bson::String(text) if !text.is_empty() => Some(text.clone()),
        _ => None,
    }
}

/// The fields of a collection, and counts of their values.
pub(super) async fn describe(server: &Arc<Server>, name: &str) -> Result<ForeignTable> {
    if name == prefix::of_table("users") {
        return Err(StoreError::schema(format!(
            "{name} is clerk-sync's own collection: name the application's collection"
        )));
    }
    let mut columns: BTreeMap<String, ForeignColumn> = BTreeMap::new();
    let mut rows = 0;
    for document in Alone(server).rows(doc! { "find": name }).await? {
        rows += 1;
        flat(&document, "", &mut |path, value| {
            let column = columns.entry(path.clone()).or_default();
            column.name = path;
            column.filled += u64::from(!matches!(value, Bson::Null) && *value != Bson::String(String::new()));
            if let Some(text) = text(value) {
                column.is_text = true;
                let rest = text.strip_prefix("user_");
                let is_id = rest.is_some_and(|rest| {
                    rest.len() == 27 && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())
                });
                column.like_ids += u64::from(rest.is_some());
                column.ids += u64::from(is_id);
            }
        });
    }
    if columns.is_empty() {
        return Err(StoreError::schema(format!(
            "there is no collection {name} with documents in this database"
        )));
    }
    let columns = columns.into_values().collect();
    // MongoDB's dates are points in time.
    Ok(ForeignTable { columns, rows, zone: Some("UTC".to_owned()), hides_rows: false })
}

/// Up to `limit` documents after this id, ordered by id.
pub(super) async fn read(
    server: &Arc<Server>,
    reading: &ForeignReading,
    after: Option<&str>,
    limit: u32,
) -> Result<Vec<ForeignRow>> {
    let condition = reading.condition.as_deref().map(|text| {
        let wrong = |_| {
            StoreError::schema(
                "--deleted-when: write a MongoDB filter as JSON, such as '{\"status\": \"deleted\"}'"
                    .to_owned(),
            )
        };
        serde_json::from_str::<Document>(text).map_err(wrong)
    });
    let condition = condition.transpose()?;
    let behind = doc! { &reading.id: { "$type": "string", "$gt": after.unwrap_or_default() } };
    let mut find = doc! { "find": &reading.table, "filter": &behind, "sort": { &reading.id: 1 } };
    find.insert("limit", i64::from(limit));
    let mut alone = Alone(server);
    let documents = alone.rows(find).await?;
    let mut deleted = Vec::new();
    if let Some(condition) = condition {
        let ids: Vec<Bson> = documents.iter().filter_map(|document| document.get("_id").cloned()).collect();
        let find =
            doc! { "find": &reading.table, "filter": { "$and": [{ "_id": { "$in": ids } }, condition] } };
        deleted =
            alone.rows(find).await?.iter().filter_map(|document| document.get("_id").cloned()).collect();
    }
    let row = |document: &Document| {
        let mut values = serde_json::Map::new();
        let mut id = None;
        flat(document, "", &mut |path, value| {
            if path == reading.id {
                id = text(value);
            } else if reading.columns.contains(&path) {
                values.insert(path, json(value));
            }
        });
        let meets_condition = document.get("_id").is_some_and(|id| deleted.contains(id));
        Some(ForeignRow { id: id?, values, meets_condition })
    };
    Ok(documents.iter().filter_map(row).collect())
}
