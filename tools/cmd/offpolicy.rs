//! `hone eval --off-policy`: what the journal says about an adapter, without any data.
use std::collections::BTreeSet;
use std::process::ExitCode;

use hone_runtime::Class;
use hone_runtime::adapters::{AdapterId, AdapterStore};
use hone_runtime::app::classes::Head;
use hone_runtime::app::offpolicy::decisions;
use hone_runtime::bundle::Bundle;
use hone_runtime::journal::Reader;
use hone_runtime::metrics::offpolicy::{Estimate, Logged, OffPolicy, off_policy};
use hone_runtime::model::Model;
use hone_runtime::session::SessionOptions;
use hone_runtime::state::StateDir;
use serde::Serialize;

use super::eval::Eval;
use crate::exit::fail;
use crate::output;

/// An effective sample below this many decisions says little.
const THIN: f64 = 20.0;

#[derive(Serialize)]
struct Row {
    adapter: String,
    /// The last record it was learned from; only presses after it are weighed.
    learned_until: u64,
    #[serde(flatten)]
    estimates: OffPolicy,
    notes: Vec<&'static str>,
}

#[derive(Serialize)]
struct Document {
    schema: &'static str,
    model: String,
    /// Only presses after this record are weighed.
    after: u64,
    rows: Vec<Row>,
}

/// Estimates the share of right answers of each adapter asked for, on the same presses.
pub(super) fn run(eval: Eval) -> anyhow::Result<ExitCode> {
    let Some(dir) = &eval.state else {
        return Err(fail(Class::Usage, "--off-policy reads a journal: give --state DIR"));
    };
    let state = StateDir::at(dir);
    let mut model = Model::open(Bundle::open(&eval.bundle)?, SessionOptions::default())?;
    let store = AdapterStore::new(&state, model.bundle().base_digest())?;
    let mut heads = Vec::new();
    for name in eval.wanted() {
        let id = match name.as_str() {
            "factory" => None,
            "current" => store.current_id()?,
            id => Some(id.parse::<AdapterId>()?),
        };
        let adapter = id.as_ref().map(|id| store.load(id)).transpose()?;
        let until = adapter.as_ref().map_or(0, |a| a.provenance.journal_seq);
        heads.push((id, until, Head::new(&model, Some(&state), adapter)?));
    }
    let reader = Reader::open(&state)?;
    // On the same presses for all: those none of them was learned from.
    let after = heads.iter().map(|(_, until, _)| *until).max().unwrap_or(0);
    let mut all = Vec::new();
    for (id, learned_until, head) in heads {
        let found = decisions(&mut model, &store, id.as_ref(), &reader, &head, after)?;
        all.push((id.map_or_else(|| "factory".to_string(), |id| id.to_string()), learned_until, found));
    }
    // And on those every one of them can be asked about.
    let everywhere: BTreeSet<u32> = all.first().map(|(.., f)| f.log.keys().copied().collect()).unwrap_or_default();
    let everywhere: BTreeSet<u32> =
        everywhere.into_iter().filter(|id| all.iter().all(|(.., f)| f.log.contains_key(id))).collect();
    let unseen = all.iter().map(|(.., f)| f.unseen).max().unwrap_or(0);
    let too_old = all.iter().map(|(.., f)| f.too_old).max().unwrap_or(0);
    if everywhere.is_empty() && unseen > 0 {
        let text = format!(
            "{unseen} answers with presses were seen by another body than the one to be judged (a tuned adapter was in \
             use, or is asked about), and their inputs are not kept: nobody can say what it would have answered. Show \
             answers with `hone listen --keep-inputs QUOTA`"
        );
        return Err(fail(Class::Failed, text));
    }
    if everywhere.is_empty() && too_old > 0 {
        let text = format!(
            "every press that counts came before record {after}, up to which an adapter was learned: an estimate needs \
             presses that came later, or it only shows what was learned by heart"
        );
        return Err(fail(Class::Failed, text));
    }
    let mut rows = Vec::new();
    for (adapter, learned_until, found) in all {
        let log: Vec<Logged> =
            found.log.into_iter().filter(|(id, _)| everywhere.contains(id)).map(|(_, logged)| logged).collect();
        let estimates = off_policy(&log, 0)?;
        let mut notes = vec!["only answers somebody pressed on are weighed"];
        if unseen > 0 {
            notes.push("answers seen by another body whose inputs are not kept are left out");
        }
        if estimates.effective_sample_size < THIN {
            notes.push("the effective sample is small: read the intervals, not the figures");
        }
        rows.push(Row { adapter, learned_until, estimates, notes });
    }
    let document = Document { schema: "hone.off-policy/1", model: model.bundle().manifest().name.clone(), after, rows };
    if eval.json {
        output::json(&document)?;
        return Ok(ExitCode::SUCCESS);
    }
    let percent = |e: &Estimate| format!("{:.1} % [{:.1}, {:.1}]", 100.0 * e.value, 100.0 * e.low, 100.0 * e.high);
    let heads = ["adapter", "decisions", "left out", "effective", "SNIPS", "doubly robust", "as shown"];
    let mut table = vec![heads.map(String::from).to_vec()];
    for r in &document.rows {
        let e = &r.estimates;
        table.push(vec![
            r.adapter.clone(),
            e.n.to_string(),
            e.certain.to_string(),
            format!("{:.1}", e.effective_sample_size),
            percent(&e.snips),
            percent(&e.dr),
            percent(&e.logged),
        ]);
    }
    output::line(output::table(&table))?;
    let notes: BTreeSet<&str> = document.rows.iter().flat_map(|r| r.notes.iter().copied()).collect();
    notes.into_iter().for_each(|n| output::say(format!("note: {n}")));
    Ok(ExitCode::SUCCESS)
}
