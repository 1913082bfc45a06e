//! `SYNC_FIELDS_…`: the allow-list of every kind but users, which have `SYNC_FIELDS`.

use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::{
    entity::{self, USER},
    model::{Entity, Field},
};

/// What was given of them, in the order of the kinds.
#[derive(Clone, Default)]
pub struct FieldsOfKinds(Vec<(&'static Entity, String)>);

/// The kinds with their variables and flags, which last as long as the program.
static NAMES: LazyLock<Vec<(&'static Entity, &'static str, &'static str)>> = LazyLock::new(|| {
    let others = entity::ALL.iter().filter(|entity| ***entity != USER);
    let names = |entity: &&'static Entity| {
        let variable: &'static str = format!("SYNC_FIELDS_{}", entity.kind.to_ascii_uppercase()).leak();
        let flag: &'static str = format!("sync-fields-{}", entity.kind.replace('_', "-")).leak();
        (*entity, variable, flag)
    };
    others.map(names).collect()
});

impl FieldsOfKinds {
    /// The variable of a kind.
    pub fn variable(entity: &Entity) -> Option<&'static str> {
        NAMES.iter().find(|(other, ..)| *other == entity).map(|(_, variable, _)| *variable)
    }

    /// The same, and what was given.
    pub(super) fn of(&self, entity: &Entity) -> Option<(&'static str, Option<&str>)> {
        let given = self.0.iter().find(|(other, _)| *other == entity);
        Some((Self::variable(entity)?, given.map(|(_, text)| text.as_str())))
    }
}

impl FromArgMatches for FieldsOfKinds {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut this = Self::default();
        this.update_from_arg_matches(matches)?;
        Ok(this)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let given = NAMES
            .iter()
            .filter_map(|(entity, _, flag)| Some((*entity, matches.get_one::<String>(flag)?.clone())));
        self.0 = given.collect();
        Ok(())
    }
}

impl Args for FieldsOfKinds {
    fn augment_args(command: Command) -> Command {
        NAMES.iter().fold(command, |command, (entity, variable, flag)| {
            let defaults = entity.fields().filter(|field| field.by_default).map(Field::name);
            let defaults = defaults.collect::<Vec<_>>().join(",");
            command.arg(
                Arg::new(*flag)
                    .long(*flag)
                    .env(*variable)
                    .hide_env_values(true)
                    .global(true)
                    .value_name("FIELDS")
                    .help_heading("Other objects")
                    .help(format!("The fields of {} to sync [default: {defaults}]", entity.table)),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
