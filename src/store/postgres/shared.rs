//! How the statements that all databases share run here.

use async_trait::async_trait;
use sqlx::{Postgres as Pg, postgres::PgArguments, query::Query};

use super::{Postgres, Session, sql};
use crate::store::{
    Patience, Result,
    sql::{self as shared, Database, Dialect, Purpose, Row, Statement, Value},
};

#[async_trait]
impl Database for Postgres {
    async fn session(&self, purpose: Purpose) -> Result<Box<dyn shared::Session>> {
        let begin = match purpose {
            Purpose::Read | Purpose::Write(Patience::Normal) => &self.begin_normal,
            Purpose::Write(Patience::Short) => &self.begin_short,
            Purpose::Write(Patience::Long) => &self.begin_long,
            Purpose::WriteUnhurried => &self.begin_unhurried,
            Purpose::Page => &self.begin_page,
            Purpose::Count => &self.begin_count,
            Purpose::Scan => &self.begin_migration,
        };
        Ok(Box::new(Self::session(self, begin).await?))
    }
}

#[async_trait]
impl shared::Session for Session {
    async fn rows(&mut self, statement: &'static Statement, values: &[Value<'_>]) -> Result<Vec<Row>> {
        let rows = Self::rows(self, bound(statement, values)).await?;
        Ok(rows.into_iter().map(Row::Postgres).collect())
    }

    async fn execute(&mut self, statement: &'static Statement, values: &[Value<'_>]) -> Result<u64> {
        Self::execute(self, bound(statement, values)).await
    }

    fn leaves_work(&mut self) {
        Self::leaves_work(self);
    }

    fn removed_personal_data(&mut self) {
        // Its own vacuum sees to it.
    }

    async fn commit(self: Box<Self>) -> Result<()> {
        Self::commit(*self).await
    }

    async fn rollback(self: Box<Self>) {
        Self::rollback(*self).await;
    }
}

fn bound<'a>(statement: &'static Statement, values: &'a [Value<'a>]) -> Query<'a, Pg, PgArguments> {
    values.iter().fold(sql(statement.sql(Dialect::Postgres)), |query, value| match value {
        Value::Text(text) => query.bind(*text),
        Value::Rows(rows) => query.bind(rows.as_str()),
        Value::Int(number) => query.bind(*number),
        Value::Bool(truth) => query.bind(*truth),
        Value::Time(time) => query.bind(*time),
        Value::Bytes(bytes) => query.bind(*bytes),
    })
}
