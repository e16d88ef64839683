//! What `runtime` shows to its users: public signatures name no type of a crate that is an implementation detail.
//!
//! `pub` is taken at its word: an item is public when it says plain `pub`, whatever module it lies in.
use std::collections::BTreeMap;

use syn::spanned::Spanned;
use syn::visit::Visit;

use super::Finding;
use super::rust::is_cfg_test;
use super::tree::Tree;

/// Whether a crate may not be seen from outside.
fn is_hidden(krate: &str) -> bool {
    krate.starts_with("tract") || matches!(krate, "serde_json" | "rusqlite" | "wgpu" | "naga")
}

pub(super) fn signatures(tree: &Tree) -> Vec<Finding> {
    let mut out = Vec::new();
    for (path, file) in tree.rust("runtime/src/").filter(|(_, f)| !f.test_only) {
        let mut scan = Scan { path, names: BTreeMap::new(), public: Vec::new(), out: &mut out };
        scan.items(&file.ast.items);
    }
    out
}

struct Scan<'a> {
    path: &'a str,
    /// What a name that a `use` brought in stands for.
    names: BTreeMap<String, String>,
    /// Types this file declares public.
    public: Vec<String>,
    out: &'a mut Vec<Finding>,
}

impl Scan<'_> {
    fn items(&mut self, items: &[syn::Item]) {
        for item in items {
            match item {
                syn::Item::Use(u) => brought_in(&u.tree, None, &mut self.names),
                syn::Item::Struct(s) if is_pub(&s.vis) => self.public.push(s.ident.to_string()),
                syn::Item::Enum(e) if is_pub(&e.vis) => self.public.push(e.ident.to_string()),
                _ => {}
            }
        }
        for item in items {
            self.item(item);
        }
    }

    fn item(&mut self, item: &syn::Item) {
        match item {
            syn::Item::Fn(f) if is_pub(&f.vis) && !is_cfg_test(&f.attrs) => self.visit_signature(&f.sig),
            syn::Item::Struct(s) if is_pub(&s.vis) => {
                self.visit_generics(&s.generics);
                s.fields.iter().filter(|f| is_pub(&f.vis)).for_each(|f| self.visit_type(&f.ty));
            }
            syn::Item::Enum(e) if is_pub(&e.vis) => {
                self.visit_generics(&e.generics);
                e.variants.iter().flat_map(|v| &v.fields).for_each(|f| self.visit_type(&f.ty));
            }
            syn::Item::Trait(t) if is_pub(&t.vis) => {
                t.supertraits.iter().for_each(|b| self.visit_type_param_bound(b));
                for item in &t.items {
                    match item {
                        syn::TraitItem::Fn(f) => self.visit_signature(&f.sig),
                        syn::TraitItem::Type(t) => t.bounds.iter().for_each(|b| self.visit_type_param_bound(b)),
                        syn::TraitItem::Const(c) => self.visit_type(&c.ty),
                        _ => {}
                    }
                }
            }
            syn::Item::Type(t) if is_pub(&t.vis) => self.visit_type(&t.ty),
            syn::Item::Const(c) if is_pub(&c.vis) => self.visit_type(&c.ty),
            syn::Item::Static(s) if is_pub(&s.vis) => self.visit_type(&s.ty),
            syn::Item::Use(u) if is_pub(&u.vis) => {
                let mut names = BTreeMap::new();
                brought_in(&u.tree, None, &mut names);
                for krate in names.into_values() {
                    self.judge(&krate, u.span().start().line);
                }
            }
            syn::Item::Impl(i) if !is_cfg_test(&i.attrs) => self.implementation(i),
            syn::Item::Mod(m) if !is_cfg_test(&m.attrs) => {
                if let Some((_, items)) = &m.content {
                    self.items(items);
                }
            }
            _ => {}
        }
    }

    fn implementation(&mut self, i: &syn::ItemImpl) {
        match &i.trait_ {
            // `impl From<Theirs> for Ours` is part of the public face of `Ours`.
            Some((_, of, _)) => {
                let syn::Type::Path(own) = &*i.self_ty else { return };
                let own = own.path.segments.last().map(|s| s.ident.to_string()).unwrap_or_default();
                if self.public.contains(&own) {
                    self.visit_path(of);
                }
            }
            None => {
                for item in &i.items {
                    match item {
                        syn::ImplItem::Fn(f) if is_pub(&f.vis) && !is_cfg_test(&f.attrs) => {
                            self.visit_signature(&f.sig);
                        }
                        syn::ImplItem::Const(c) if is_pub(&c.vis) => self.visit_type(&c.ty),
                        _ => {}
                    }
                }
            }
        }
    }

    fn judge(&mut self, krate: &str, line: usize) {
        if is_hidden(krate) {
            self.out.push(Finding::new(self.path, line, format!("a public signature names a type of `{krate}`")));
        }
    }
}

impl<'ast> Visit<'ast> for Scan<'_> {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let Some(first) = path.segments.first() {
            let first = first.ident.to_string();
            let krate = self.names.get(&first).cloned().unwrap_or(first);
            self.judge(&krate, path.span().start().line);
        }
        syn::visit::visit_path(self, path);
    }
}

fn is_pub(vis: &syn::Visibility) -> bool {
    matches!(vis, syn::Visibility::Public(_))
}

/// For every name a `use` brings in: the first segment of what it stands for.
fn brought_in(tree: &syn::UseTree, krate: Option<&str>, names: &mut BTreeMap<String, String>) {
    let mut bring = |name: &syn::Ident| {
        let name = name.to_string();
        names.insert(name.clone(), krate.unwrap_or(&name).to_string());
    };
    match tree {
        syn::UseTree::Path(p) => {
            let first = p.ident.to_string();
            brought_in(&p.tree, Some(krate.unwrap_or(&first)), names);
        }
        syn::UseTree::Name(n) => bring(&n.ident),
        syn::UseTree::Rename(r) => {
            let from = r.ident.to_string();
            names.insert(r.rename.to_string(), krate.unwrap_or(&from).to_string());
        }
        syn::UseTree::Group(g) => g.items.iter().for_each(|t| brought_in(t, krate, names)),
        // What a glob brings in cannot be told from the text; `pub use hidden::*` is caught by its first segment.
        syn::UseTree::Glob(_) => {
            if let Some(k) = krate {
                names.insert(format!("{k}::*"), k.to_string());
            }
        }
    }
}
