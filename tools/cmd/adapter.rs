//! `hone adapter`: what was learned, which of it is in use, and why.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use hone_runtime::Class;
use hone_runtime::adapters::{AdapterFile, AdapterId, AdapterStore};
use hone_runtime::bundle::Bundle;
use hone_runtime::bundle::npz::read_npz;
use hone_runtime::graph::Graph;
use hone_runtime::import::to_onnx;
use hone_runtime::journal::{AdapterAction, AdapterEvent, Filter, Journal, Kind, Reader};
use hone_runtime::learn::Trip;
use hone_runtime::model::Model;
use hone_runtime::scope::{self, Asked, Moved};
use hone_runtime::session::{Session, SessionOptions};
use hone_runtime::state::StateDir;
use hone_runtime::tensor::{Tensor, safetensors};
use serde_json::{Value, json};

use crate::exit::fail;
use crate::{input, output};

/// Lists, chooses, explains, removes and exports the adapters learned for a bundle.
#[derive(Args)]
pub(crate) struct Adapter {
    #[command(subcommand)]
    what: What,
    /// The state directory; $STATE_DIRECTORY, or the XDG one, if not given.
    #[arg(long, value_name = "DIR", global = true)]
    state: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Every adapter, oldest first.
    List {
        /// The bundle they belong to.
        bundle: PathBuf,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Makes one the adapter in use.
    Use {
        /// The bundle it belongs to.
        bundle: PathBuf,
        /// Its id, or `factory`.
        id: String,
    },
    /// Goes on with the factory weights; every adapter stays on disk.
    Factory {
        /// The bundle.
        bundle: PathBuf,
    },
    /// Goes back to the adapter that was in use before this one.
    Rollback {
        /// The bundle.
        bundle: PathBuf,
    },
    /// Where an adapter comes from and every decision about it, with its figures.
    Explain {
        /// The bundle it belongs to.
        bundle: PathBuf,
        /// Its id, or `factory`.
        id: String,
        /// One JSON document.
        #[arg(long)]
        json: bool,
    },
    /// Removes an adapter that is not in use.
    Rm {
        /// The bundle it belongs to.
        bundle: PathBuf,
        /// Its id.
        id: AdapterId,
    },
    /// Writes an adapter out: its tensors, its model with the adapter folded in, or what PEFT loads.
    #[command(group = clap::ArgGroup::new("form").required(true).args(["output", "merged", "peft"]))]
    Export {
        /// The bundle it belongs to, or the .onnx file.
        model: PathBuf,
        /// Its id; for an .onnx file the file that `hone tune` wrote.
        adapter: String,
        /// Its tensors as safetensors.
        #[arg(short, long, value_name = "FILE.safetensors")]
        output: Option<PathBuf>,
        /// A standard ONNX file with the adapter in its weights, quantised again where they were. Says how far its
        /// answers are from those with the adapter beside the weights.
        #[arg(long, value_name = "OUT.onnx")]
        merged: Option<PathBuf>,
        /// More samples for that: files of the graph's inputs. A bundle's golden samples are used without being named.
        #[arg(long, value_name = "FILE.npz", num_args = 1.., requires = "merged")]
        samples: Vec<PathBuf>,
        /// Low-rank paths as adapter_config.json and adapter_model.safetensors for PyPI `peft`, named as the exporter
        /// named the layers.
        #[arg(long, value_name = "DIR")]
        peft: Option<PathBuf>,
    },
}

impl Adapter {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let state = StateDir::resolve(self.state.as_deref())?;
        match self.what {
            What::List { bundle, json } => list(&store(&state, &bundle)?.0, json)?,
            What::Use { bundle, id } => choose(&state, &bundle, adapter_id(&id)?)?,
            What::Factory { bundle } => choose(&state, &bundle, None)?,
            What::Rollback { bundle } => {
                let (store, base) = store(&state, &bundle)?;
                let mut journal = Journal::open(state.lock()?)?;
                let id = store.before()?;
                // First the record, as the loop does: a switch that a stop has cut off is then made good at the next
                // start.
                record(&mut journal, &base, id.as_ref(), AdapterAction::RolledBack)?;
                store.switch(id.as_ref())?;
                journal.close()?;
                output::line(format!("in use: {}", name(id.as_ref())))?;
            }
            What::Explain { bundle, id, json } => {
                let (store, base) = store(&state, &bundle)?;
                explain(&state, &store, &base, adapter_id(&id)?, json)?;
            }
            What::Rm { bundle, id } => {
                let (store, _) = store(&state, &bundle)?;
                let _lock = state.lock()?;
                store.remove(&id)?;
                output::line(format!("removed {id}"))?;
            }
            What::Export { model, adapter, output, merged, samples, peft } if super::run::is_onnx(&model) => {
                let onnx = input::read(&model)?;
                let file = AdapterFile::from_bytes(&input::read(Path::new(&adapter))?, &onnx)?;
                let tuned = &file.tuned;
                let session = Session::from_onnx(&onnx, &model.display().to_string(), SessionOptions::default())?;
                let (graph, opset) = (session.graph(), session.info().opset);
                if let Some(path) = output {
                    input::write(&path, &file.to_bytes()?)?;
                }
                if let Some(path) = merged {
                    let made = scope::merge(graph, opset, &tuned.spec, &tuned.tensors)?;
                    let beside = scope::place(graph, opset, &tuned.spec)?.with(&tuned.tensors)?;
                    let moved = moved(&beside, &made.graph, &tuned.spec.output, &read(&samples)?)?;
                    input::write(&path, &to_onnx(&made.graph, &onnx)?)?;
                    say_merged(&path, &made.folded, &made.beside, moved.as_ref())?;
                }
                if let Some(dir) = peft {
                    write_peft(&dir, &scope::peft(graph, opset, &tuned.spec, &tuned.tensors)?)?;
                }
            }
            What::Export { model: bundle, adapter, output, merged, samples, peft } => {
                let (store, base) = store(&state, &bundle)?;
                let wrong = || fail(Class::Usage, format!("`{adapter}` is no adapter; it is 16 hexadecimal digits"));
                let id: AdapterId = adapter.parse().map_err(|_| wrong())?;
                // Read and checked against its id first, so that what is copied is what was published.
                let loaded = store.load(&id)?;
                if let Some(output) = output {
                    let from = state.adapters().join(&base).join(id.as_str()).join("adapter_model.safetensors");
                    input::write(&output, &input::read(&from)?)?;
                    let (classes, columns) = (loaded.classes, loaded.columns);
                    output::line(format!("{}: theta [{classes}, {columns}] of adapter {id}", output.display()))?;
                }
                if merged.is_none() && peft.is_none() {
                    return Ok(ExitCode::SUCCESS);
                }
                let model = Model::open(Bundle::open(&bundle)?, SessionOptions::default())?;
                if let Some(path) = merged {
                    let made = model.merged(&store, &id, read(&samples)?)?;
                    input::write(&path, &made.onnx)?;
                    say_merged(&path, &made.folded, &made.beside, made.moved.as_ref())?;
                }
                if let Some(dir) = peft {
                    let Some((_, tuned)) = store.body(&id)? else {
                        return Err(fail(
                            Class::Usage,
                            format!("adapter {id} is a correction of the head, which PEFT has no form for"),
                        ));
                    };
                    let opset = model.session().info().opset;
                    write_peft(&dir, &scope::peft(model.factory(), opset, &tuned.spec, &tuned.tensors)?)?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Samples in files, each the inputs of a graph by name.
fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Vec<(String, Tensor)>>> {
    let one = |path: &PathBuf| read_npz(&input::read(path)?).with_context(|| path.display().to_string());
    files.iter().map(one).collect()
}

/// How a graph's value differs from that of the folded one; `None` without a sample.
fn moved(
    beside: &Graph,
    folded: &Graph,
    output: &str,
    samples: &[Vec<(String, Tensor)>],
) -> anyhow::Result<Option<Moved>> {
    let mut pairs = Vec::new();
    let [mut as_beside, mut as_folded] = [beside, folded].map(|g| Asked::new(g, &[output]));
    for sample in samples {
        let inputs = scope::ordered(beside, sample)
            .map_err(|name| fail(Class::Invalid, format!("a sample has no input `{name}`")))?;
        let (a, b) = (as_beside.of(&inputs)?.swap_remove(0), as_folded.of(&inputs)?.swap_remove(0));
        let columns = a.shape().last().copied().unwrap_or(1).max(1);
        pairs.push((a.as_f32()?.to_vec(), b.as_f32()?.to_vec(), columns));
    }
    let all = pairs.iter().map(|(a, b, n)| (&a[..], &b[..], *n));
    Ok((!pairs.is_empty()).then(|| Moved::of(all)))
}

fn say_merged(path: &Path, folded: &[String], beside: &[String], moved: Option<&Moved>) -> anyhow::Result<()> {
    output::line(format!("{}: {} layers have the adapter in their weights", path.display(), folded.len()))?;
    match moved {
        Some(m) => output::line(format!(
            "beside the weights the adapter gives the same largest logit in {} of {} rows, cosine {:.6} at least, no \
             logit further off than {:.2e} of {:.2e}",
            m.same_top, m.rows, m.cosine, m.largest, m.of
        ))?,
        None => output::say(
            "hone: how far folding moves the answers was not measured: there is no sample; --samples FILE.npz gives some",
        ),
    }
    if !beside.is_empty() {
        let text = format!("hone: beside the weights of {} its path stays, as nodes of its own", beside.join(", "));
        output::say(text);
    }
    Ok(())
}

fn write_peft(dir: &Path, peft: &scope::Peft) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| fail(Class::Store, format!("cannot make {}: {e}", dir.display())))?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::write(&peft.tensors, metadata).map_err(|e| fail(Class::Failed, e))?;
    input::write(&dir.join("adapter_model.safetensors"), &bytes)?;
    input::write(&dir.join("adapter_config.json"), peft.config.as_bytes())?;
    Ok(output::line(format!("{}: {} tensors for PEFT", dir.display(), peft.tensors.len()))?)
}

fn store(state: &StateDir, bundle: &Path) -> anyhow::Result<(AdapterStore, String)> {
    let bundle = Bundle::open(bundle).with_context(|| bundle.display().to_string())?;
    let base = bundle.base_digest().to_string();
    Ok((AdapterStore::new(state, &base)?, base))
}

/// `factory` is none.
fn adapter_id(text: &str) -> anyhow::Result<Option<AdapterId>> {
    if text == "factory" {
        return Ok(None);
    }
    let wrong = |_| fail(Class::Usage, format!("`{text}` is no adapter; it is 16 hexadecimal digits, or `factory`"));
    text.parse().map(Some).map_err(wrong)
}

fn name(id: Option<&AdapterId>) -> String {
    id.map_or("factory".into(), |id| id.to_string())
}

fn record(journal: &mut Journal, base: &str, id: Option<&AdapterId>, action: AdapterAction) -> anyhow::Result<()> {
    let event = AdapterEvent { id: name(id), base_digest: base.to_string(), action, numbers: BTreeMap::new() };
    journal.adapter(&event)?;
    Ok(())
}

fn choose(state: &StateDir, bundle: &Path, id: Option<AdapterId>) -> anyhow::Result<()> {
    let (store, base) = store(state, bundle)?;
    let mut journal = Journal::open(state.lock()?)?;
    if let Some(id) = &id {
        store.load(id)?;
    }
    record(&mut journal, &base, id.as_ref(), AdapterAction::Used)?;
    store.switch(id.as_ref())?;
    journal.close()?;
    Ok(output::line(format!("in use: {}", name(id.as_ref())))?)
}

fn list(store: &AdapterStore, as_json: bool) -> anyhow::Result<()> {
    let listed = store.list()?;
    let current = store.current_id()?;
    if as_json {
        let row = |l: &hone_runtime::adapters::Listed| {
            let damaged = l.provenance.is_none();
            json!({"id": l.id, "current": l.current, "damaged": damaged, "provenance": l.provenance})
        };
        let rows: Vec<Value> = listed.iter().map(row).collect();
        return output::document("hone.adapter-list/1", json!({"current": name(current.as_ref()), "adapters": rows}));
    }
    let mark = |on: bool| if on { "*" } else { "" }.to_string();
    let heads = ["", "adapter", "order", "presses", "objective", "parent"].map(String::from).to_vec();
    let factory = vec![mark(current.is_none()), "factory".into()];
    let mut rows = vec![heads, factory];
    for l in &listed {
        let mut row = vec![mark(l.current), l.id.to_string()];
        match &l.provenance {
            Some(p) => {
                row.extend([p.order.to_string(), p.presses.to_string(), p.objective.clone(), name(p.parent.as_ref())])
            }
            None => row.push("damaged: `hone adapter rm` removes it".into()),
        }
        rows.push(row);
    }
    Ok(output::line(output::table(&rows))?)
}

fn explain(
    state: &StateDir,
    store: &AdapterStore,
    base: &str,
    id: Option<AdapterId>,
    as_json: bool,
) -> anyhow::Result<()> {
    let adapter = id.as_ref().map(|id| store.load(id)).transpose()?;
    let wanted = name(id.as_ref());
    let mut events: Vec<(u64, i64, AdapterEvent)> = Vec::new();
    for record in Reader::open(state)?.list(&Filter { kind: Some(Kind::Adapter), ..Filter::default() })? {
        let Some(payload) = &record.payload else { continue };
        let event: AdapterEvent =
            serde_json::from_str(payload).with_context(|| format!("record {} of the journal", record.seq))?;
        if event.id == wanted && event.base_digest == base {
            events.push((record.seq, record.wall_ms, event));
        }
    }
    if as_json {
        let row = |(seq, wall_ms, e): &(u64, i64, AdapterEvent)| {
            let (action, why) = (&e.action, why(e));
            json!({"seq": seq, "wall_ms": wall_ms, "action": action, "why": why, "numbers": e.numbers})
        };
        let records: Vec<Value> = events.iter().map(row).collect();
        let provenance = adapter.as_ref().map(|a| &a.provenance);
        return output::document(
            "hone.adapter-explain/1",
            json!({"id": wanted, "base_digest": base, "provenance": provenance, "records": records}),
        );
    }
    output::line(format!("adapter {wanted} of bundle {base}"))?;
    if let Some(a) = &adapter {
        let p = &a.provenance;
        let norm = a.theta.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        output::line(format!(
            "  theta [{}, {}], norm {norm:.4}; number {} for this bundle, after {}",
            a.classes,
            a.columns,
            p.order,
            name(p.parent.as_ref())
        ))?;
        output::line(format!(
            "  objective {} on the {}, {} presses up to record {}, lambda {:.3}, delta {:.3}, epsilon {:.3}",
            p.objective, p.scope, p.presses, p.journal_seq, p.lambda, p.delta, p.epsilon
        ))?;
    }
    if let Some(t) = adapter.as_ref().and_then(|a| a.tuned.as_ref()) {
        let numbers: usize = t.tensors.iter().map(|(_, t)| t.len()).sum();
        output::line(format!("  tuned by run {}: {} numbers in {} tensors", t.run, numbers, t.tensors.len()))?;
    }
    if let Some(body) = adapter.as_ref().and_then(|a| a.provenance.body.as_ref()) {
        output::line(format!("  learned on the body of adapter {body}"))?;
    }
    if let Some(classes) = adapter.as_ref().and_then(|a| a.provenance.classes.as_ref()) {
        output::line(format!("  classes {}", classes.visible_names().join(", ")))?;
    }
    if events.is_empty() {
        output::line("  the journal says nothing about it")?;
    }
    for (seq, _, e) in &events {
        let action = serde_json::to_value(e.action)?;
        let numbers: Vec<String> = e.numbers.iter().map(|(k, v)| format!("{k} {v:.3}")).collect();
        output::line(format!("  record {seq}: {}", action.as_str().unwrap_or_default()))?;
        if let Some(why) = why(e) {
            output::line(format!("    {why}"))?;
        }
        if !numbers.is_empty() {
            output::line(format!("    {}", numbers.join(", ")))?;
        }
    }
    Ok(())
}

/// A decision of the gate in a sentence, from its figures; `None` for what a person has decided.
fn why(e: &AdapterEvent) -> Option<String> {
    let n = |name: &str| e.numbers.get(name).copied();
    let gate = ["veto", "superiority", "off"].into_iter().find(|mode| n(&format!("gate_{mode}")).is_some());
    let by = gate.map_or(String::new(), |mode| {
        let bound = |name: &str| n(name).map_or("?".to_string(), |v| format!("{v}"));
        format!(
            " (gate `{mode}`: worse from probability {}, rolled back from {}, {} losses at least)",
            bound("gate_threshold"),
            bound("gate_rollback_threshold"),
            bound("gate_least_losses")
        )
    });
    let trip = Trip::told(&e.numbers);
    if let (AdapterAction::Frozen, Some(trip), None) = (e.action, &trip, n("confirmed")) {
        return Some(format!("frozen: {trip}; nothing is published before a confirmed press{by}"));
    }
    let confirmed = n("confirmed")?;
    let against = |pair: &str, other: &str| {
        let worse = n(&format!("{pair}_p_worse"))?.max(n(&format!("{pair}_p_worse_harsh"))?);
        let (won, lost) = (n(&format!("{pair}_wins"))?, n(&format!("{pair}_losses"))?);
        Some((worse, format!("{won:.1} won and {lost:.1} lost against {other}, worse with probability {worse:.2}")))
    };
    let factory = against("candidate_factory", "the factory head")?;
    let incumbent = against("candidate_incumbent", "the head in use")?;
    let on = format!("on {confirmed:.0} confirmed presses");
    // Records from before this was counted have no such figures.
    let foretold = |pair: &str| {
        let (surprise, most) = (n(&format!("{pair}_surprise"))?, n("most_surprise")?);
        (surprise > most).then(|| {
            let (factor, most) = (surprise.exp(), most.exp());
            format!(
                "foretold the confirmed presses worse than the factory head by a factor of {factor:.1}, {most:.1} is \
                 allowed"
            )
        })
    };
    Some(match e.action {
        AdapterAction::Published => format!("published: nothing spoke against it {on}: {}; {}", factory.1, incumbent.1),
        AdapterAction::Vetoed if let Some(why) = foretold("candidate_factory") => {
            format!("the candidate was refused {on}: it {why}; {}; {}", factory.1, incumbent.1)
        }
        AdapterAction::Vetoed => {
            let (first, second) = if factory.0 >= incumbent.0 { (factory, incumbent) } else { (incumbent, factory) };
            format!("the candidate was refused {on}: {}; {}", first.1, second.1)
        }
        AdapterAction::RolledBack => {
            let had = against("incumbent_factory", "the factory head")?.1;
            let why = foretold("incumbent_factory").map_or(String::new(), |why| format!(" {why}, and"));
            format!("rolled back: the head in use{why} had {had}")
        }
        AdapterAction::Frozen => {
            // Records from before the wires were named say only that there was one.
            let wire = trip.map_or("a trip-wire".to_string(), |trip| trip.to_string());
            format!("held back: {wire}; a confirmed press is waited for; {on}: {}{by}", factory.1)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_is_told_by_the_wire_that_tripped_with_its_figures_and_by_the_rule_of_the_gate() {
        let mut numbers = Trip::ThumbsDown { up: 2, thumbs: 40 }.figures();
        for (name, value) in [("veto", 1.0), ("threshold", 0.8), ("rollback_threshold", 0.95), ("least_losses", 2.0)] {
            numbers.insert(format!("gate_{name}"), value);
        }
        let event = AdapterEvent { id: "a".into(), base_digest: "b".into(), action: AdapterAction::Frozen, numbers };
        let told = why(&event).unwrap();
        for part in ["only 2 of the last 40 thumbs were up", "gate `veto`", "0.8", "0.95", "2 losses"] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_decision_is_told_by_the_rule_that_made_it_and_records_from_before_that_rule_as_ever() {
        let event = |action, surprise: Option<f64>| {
            let mut numbers = std::collections::BTreeMap::from([("confirmed".to_string(), 4.0)]);
            for pair in ["candidate_factory", "candidate_incumbent", "incumbent_factory"] {
                for (figure, value) in [("wins", 1.0), ("losses", 1.0), ("p_worse", 0.5), ("p_worse_harsh", 0.5)] {
                    numbers.insert(format!("{pair}_{figure}"), value);
                }
                numbers.extend(surprise.map(|s| (format!("{pair}_surprise"), s)));
            }
            numbers.extend(surprise.map(|_| ("most_surprise".to_string(), 1.0)));
            let event = AdapterEvent { id: "a".into(), base_digest: "b".into(), action, numbers };
            why(&event).expect("a decision of the gate")
        };
        for action in [AdapterAction::Vetoed, AdapterAction::RolledBack] {
            let told = event(action, Some(5.0_f64.ln()));
            assert!(told.contains("by a factor of 5.0, 2.7 is allowed"), "{told}");
            for told in [event(action, Some(0.5)), event(action, None)] {
                assert!(!told.contains("foretold") && told.contains("worse with probability 0.50"), "{told}");
            }
        }
    }
}
