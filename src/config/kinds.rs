//! `SYNC_FIELDS_…`: the allow-list of every kind but users, which have `SYNC_FIELDS`.

use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::{
    entity::{self, USER},
    model::{Entity, Field},
};

/// The kinds with their variables and flags, which clap wants to last as long as the program.
static NAMES: LazyLock<Vec<(&Entity, &str, &str)>> = LazyLock::new(|| {
    let others = entity::ALL.iter().filter(|entity| ***entity != USER);
    let names = |entity: &&'static Entity| {
        let variable: &str = format!("SYNC_FIELDS_{}", entity.kind.to_ascii_uppercase()).leak();
        let flag: &str = format!("sync-fields-{}", entity.kind.replace('_', "-")).leak();
        (*entity, variable, flag)
    };
    others.map(names).collect()
});

/// The variable that holds the allow-list of a kind.
pub fn fields_variable(entity: &Entity) -> &'static str {
    let names = NAMES.iter().find(|(other, ..)| *other == entity);
    names.map_or("SYNC_FIELDS", |(_, variable, _)| variable)
}

/// The declarations, one for each kind.
pub(super) struct FieldsOfKinds;

impl FromArgMatches for FieldsOfKinds {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), Error> {
        Ok(())
    }
}

impl Args for FieldsOfKinds {
    fn augment_args(command: Command) -> Command {
        NAMES.iter().fold(command, |command, (entity, variable, flag)| {
            let defaults = entity.fields().filter(|field| field.by_default).map(Field::name);
            let defaults = defaults.collect::<Vec<_>>().join(",");
            let help = format!("The fields of {} to sync [default: {defaults}]", entity.table);
            let argument = Arg::new(*flag).long(*flag).env(*variable).value_name("FIELDS");
            command.arg(argument.help(help).help_heading("Other objects"))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
