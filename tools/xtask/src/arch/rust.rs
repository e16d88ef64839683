//! One Rust file as tokens with lines, and as syntax. Comments and strings are not tokens of interest, so a rule that
//! looks for a word never trips over prose.
use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::spanned::Spanned;

/// An identifier or a punctuation character, and its line.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) line: usize,
}

/// A path as written: `std::net::TcpStream`, and the line it begins on.
#[derive(Clone, Debug)]
pub(super) struct Mention {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
}

impl Mention {
    /// Whether the path begins with the segments of `prefix` (`std::net`).
    pub(super) fn begins(&self, prefix: &str) -> bool {
        let prefix: Vec<&str> = prefix.split("::").collect();
        self.segments.len() >= prefix.len() && self.segments.iter().zip(&prefix).all(|(a, b)| a == b)
    }
}

impl std::fmt::Display for Mention {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.segments.join("::"))
    }
}

pub(super) struct RustFile {
    pub(super) ast: syn::File,
    tokens: Vec<Token>,
    uses: Vec<Mention>,
    /// Lines of items that exist only under `cfg(test)`.
    test_lines: Vec<RangeInclusive<usize>>,
    /// Whether the file as a whole exists only for tests or benches.
    pub(super) test_only: bool,
}

impl RustFile {
    /// # Errors
    /// The line and message of the first syntax error.
    pub(super) fn parse(text: &str) -> Result<RustFile, (usize, String)> {
        let ast = syn::parse_file(text).map_err(|e| (e.span().start().line, e.to_string()))?;
        let stream: TokenStream = text.parse().map_err(|e: proc_macro2::LexError| (0, e.to_string()))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let mut uses = Vec::new();
        let mut test_lines = Vec::new();
        walk_items(&ast.items, &mut uses, &mut test_lines);
        Ok(RustFile { ast, tokens, uses, test_lines, test_only: false })
    }

    fn is_test(&self, line: usize) -> bool {
        self.test_only || self.test_lines.iter().any(|r| r.contains(&line))
    }

    /// Every token.
    pub(super) fn tokens(&self) -> &[Token] {
        &self.tokens
    }

    /// Tokens outside tests.
    pub(super) fn product_tokens(&self) -> impl Iterator<Item = &Token> {
        self.tokens.iter().filter(|t| !self.is_test(t.line))
    }

    /// Every path as written, and every path a `use` names in braces.
    pub(super) fn mentions(&self) -> Vec<Mention> {
        let mut out = self.uses.clone();
        let t = &self.tokens;
        let is_word = |s: &str| s.starts_with(|c: char| c.is_alphabetic() || c == '_');
        let joined = |i: usize| i + 1 < t.len() && t[i].text == ":" && t[i + 1].text == ":";
        let mut i = 0;
        while i < t.len() {
            if !is_word(&t[i].text) {
                i += 1;
                continue;
            }
            let mut m = Mention { segments: vec![t[i].text.clone()], line: t[i].line };
            i += 1;
            while joined(i) && t.get(i + 2).is_some_and(|t| is_word(&t.text)) {
                m.segments.push(t[i + 2].text.clone());
                i += 3;
            }
            out.push(m);
        }
        out
    }

    /// [`RustFile::mentions`] outside tests.
    pub(super) fn product_mentions(&self) -> impl Iterator<Item = Mention> {
        self.mentions().into_iter().filter(|m| !self.is_test(m.line))
    }

    /// Names of the `mod name;` declarations under `cfg(test)`.
    pub(super) fn test_modules(&self) -> impl Iterator<Item = String> {
        self.ast.items.iter().filter_map(|item| match item {
            syn::Item::Mod(m) if m.content.is_none() && is_cfg_test(&m.attrs) => Some(m.ident.to_string()),
            _ => None,
        })
    }

    /// Whether the file has the inner attribute `#![name(argument)]`, or `#![name]` for an empty argument.
    pub(super) fn has_inner(&self, name: &str, argument: &str) -> bool {
        self.ast.attrs.iter().any(|a| {
            matches!(a.style, syn::AttrStyle::Inner(_))
                && a.path().is_ident(name)
                && match &a.meta {
                    syn::Meta::Path(_) => argument.is_empty(),
                    syn::Meta::List(l) => l.tokens.to_string() == argument,
                    syn::Meta::NameValue(_) => false,
                }
        })
    }
}

fn flatten(stream: TokenStream, out: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Group(g) => {
                let (open, close) = match g.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                out.push(Token { text: open.into(), line });
                flatten(g.stream(), out);
                out.push(Token { text: close.into(), line: g.span_close().start().line });
            }
            TokenTree::Ident(i) => out.push(Token { text: i.to_string(), line }),
            TokenTree::Punct(p) => out.push(Token { text: p.to_string(), line }),
            // The content of a literal is data, not code.
            TokenTree::Literal(_) => out.push(Token { text: "\"".into(), line }),
        }
    }
}

fn walk_items(items: &[syn::Item], uses: &mut Vec<Mention>, tests: &mut Vec<RangeInclusive<usize>>) {
    for item in items {
        let attrs: &[syn::Attribute] = match item {
            syn::Item::Mod(m) => &m.attrs,
            syn::Item::Fn(f) => &f.attrs,
            syn::Item::Use(u) => &u.attrs,
            syn::Item::Impl(i) => &i.attrs,
            syn::Item::Struct(s) => &s.attrs,
            syn::Item::Enum(e) => &e.attrs,
            syn::Item::Const(c) => &c.attrs,
            syn::Item::ExternCrate(e) => &e.attrs,
            syn::Item::Static(s) => &s.attrs,
            syn::Item::Macro(m) => &m.attrs,
            syn::Item::Trait(t) => &t.attrs,
            _ => &[],
        };
        if is_cfg_test(attrs) {
            tests.push(item.span().start().line..=item.span().end().line);
        }
        match item {
            syn::Item::Use(u) => expand(&u.tree, &mut Vec::new(), uses),
            syn::Item::Mod(m) => {
                if let Some((_, items)) = &m.content {
                    walk_items(items, uses, tests);
                }
            }
            _ => {}
        }
    }
}

/// Every path a `use` tree names, in full.
fn expand(tree: &syn::UseTree, at: &mut Vec<String>, out: &mut Vec<Mention>) {
    let mut leaf = |at: &[String], name: Option<&syn::Ident>, line: usize| {
        let mut segments = at.to_vec();
        segments.extend(name.filter(|n| *n != "self").map(ToString::to_string));
        out.push(Mention { segments, line });
    };
    match tree {
        syn::UseTree::Path(p) => {
            at.push(p.ident.to_string());
            expand(&p.tree, at, out);
            at.pop();
        }
        syn::UseTree::Name(n) => leaf(at, Some(&n.ident), n.span().start().line),
        syn::UseTree::Rename(r) => leaf(at, Some(&r.ident), r.span().start().line),
        syn::UseTree::Glob(g) => leaf(at, None, g.span().start().line),
        syn::UseTree::Group(g) => g.items.iter().for_each(|t| expand(t, at, out)),
    }
}

/// Whether an item exists only when tests are built: `cfg(test)` or `cfg(all(test, …))`.
pub(super) fn is_cfg_test(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|a| {
        a.path().is_ident("cfg")
            && matches!(&a.meta, syn::Meta::List(l) if {
                let text = l.tokens.to_string().replace(' ', "");
                text == "test" || text.starts_with("all(test,")
            })
    })
}
