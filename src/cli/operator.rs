//! `retry` and `discard`, shared by the commands `queue` and `outbox`.

use clap::Args;

use super::{Failure, clock, confirm, say};
use crate::{
    store::{Deed, Store},
    sync::operator::{self, Entry, Tally, Which},
};

/// How a command line selects entries.
pub(super) trait Choice: Args {
    type Entry: Entry;

    fn which(&self) -> Which<<Self::Entry as Entry>::Id>;
}

#[derive(Args)]
pub(super) struct Retry<C: Args> {
    #[command(flatten)]
    pub(super) choice: C,

    /// Only print how many
    #[arg(long)]
    pub(super) dry_run: bool,
}

#[derive(Args)]
pub(super) struct Discard<C: Args> {
    #[command(flatten)]
    pub(super) choice: C,

    /// Only print how many
    #[arg(long)]
    pub(super) dry_run: bool,

    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

type Done<C> = Result<Tally<<<C as Choice>::Entry as Entry>::Id>, Failure>;

impl<C: Choice> Retry<C> {
    /// Retry the selected entries. The printed line ends with `did` or, on a dry run, `would`.
    pub(super) async fn run(&self, store: &dyn Store, would: &str, did: &str) -> Done<C> {
        let which = self.choice.which();
        let tally = operator::act::<C::Entry>(store, &which, Deed::Retry, self.dry_run, clock()()).await?;
        say!("{:>9}  {}", tally.number(self.dry_run), if self.dry_run { would } else { did });
        Ok(tally)
    }
}

impl<C: Choice> Discard<C> {
    /// Discard the selected entries once the operator has confirmed the question, which contains their number.
    pub(super) async fn run(
        &self,
        store: &dyn Store,
        question: impl FnOnce(u64) -> String,
        would: &str,
        did: &str,
    ) -> Done<C> {
        let which = self.choice.which();
        let act = |dry_run| operator::act::<C::Entry>(store, &which, Deed::Discard, dry_run, clock()());
        if !self.dry_run && !self.yes {
            let number = act(true).await?.number(true);
            if number > 0 {
                confirm(&question(number))?;
            }
        }
        let tally = act(self.dry_run).await?;
        say!("{:>9}  {}", tally.number(self.dry_run), if self.dry_run { would } else { did });
        Ok(tally)
    }
}
