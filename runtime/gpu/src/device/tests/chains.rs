//! Chains of functions of elements.
use std::collections::BTreeSet;

use super::{SAME, device, map, signature};
use crate::functions::{FUNCTIONS, function};
use crate::kernel::{Allowed, Call, Draws, Kernel};
use crate::map::{Chain, Element, Map, Operand};

fn chain_of(map: &Map) -> Chain {
    Chain::clone(&map.call().unwrap().chain.unwrap())
}

/// Some function on operands that lie in some way.
fn one(draws: &mut Draws, deep: bool) -> Chain {
    let f = &FUNCTIONS[draws.word() as usize % FUNCTIONS.len()];
    let (mut operands, result) = signature(f);
    if f.name == "CastToFloat" {
        operands[0].0 = [Element::I32, Element::I64, Element::U8, Element::I8][draws.word() as usize % 4];
    }
    if matches!(f.name, "CastToBool" | "Equal") {
        let any = [Element::F32, Element::I32, Element::I64, Element::U8][draws.word() as usize % 4];
        operands.iter_mut().for_each(|o| o.0 = any);
    }
    let (shape, ways): (Vec<usize>, [Vec<usize>; 4]) = if deep {
        (vec![2, 3, 2, 3, 2], [vec![36, 12, 6, 2, 1], vec![0; 5], vec![1, 2, 0, 6, 18], vec![6, 12, 36, 1, 3]])
    } else {
        (vec![3, 5, 7], [SAME.to_vec(), vec![0; 3], vec![1, 0, 3], vec![0, 7, 1]])
    };
    let way = |draws: &mut Draws| ways[[0, 0, 0, 0, 0, 1, 2, 3][draws.word() as usize % 8]].clone();
    let operands = operands.iter().map(|(e, _)| Operand { element: *e, strides: way(draws) }).collect();
    chain_of(&Map { function: f, constants: vec![0.5, 1.5], shape, operands, result })
}

/// A call that is a chain, of two functions or more, and always the same by that number.
pub(super) fn random(seed: u64) -> Call {
    let mut draws = Draws::new(seed * 31 + 7);
    let deep = seed % 5 == 4;
    loop {
        let mut chain = one(&mut draws, deep);
        for _ in 0..4 + draws.word() % 60 {
            let first = one(&mut draws, deep);
            let Some(mut next) = chain.after(draws.word() as usize % chain.operands(), &first) else { continue };
            for j in (1..next.operands()).rev() {
                let i = draws.word() as usize % j;
                next = next.united(i, j).unwrap_or(next);
            }
            if next.call().is_some() {
                chain = next;
            }
        }
        if let Some(call) = chain.call().filter(|_| chain.links() > 1) {
            return call;
        }
    }
}

#[test]
fn a_chain_of_functions_has_the_bits_of_one_call_after_the_other_and_is_near_the_formulas() {
    // Both are what a trial asks.
    let device = device();
    let mut seen = BTreeSet::new();
    let (mut most, mut longest) = (0, 0);
    let (mut near, mut all) = (0, 0);
    for seed in 0..1000 {
        // What is drawn changes with the list of functions; what is rare may then come late.
        if seed >= 120 && seen.len() == 9 && most == 7 && longest >= 8 {
            break;
        }
        let call = random(seed);
        let chain = call.chain.as_ref().unwrap();
        (most, longest) = (most.max(chain.operands()), longest.max(chain.links()));
        assert_eq!(call.kernel.parts().len(), chain.links());
        device.ready(&call.kernel).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{}", call.kernel.source));
        for trial in call.kernel.trials() {
            let Allowed::Each { element, within } = &trial.allowed else { panic!("{:?}", trial.allowed) };
            let want = element.numbers(&trial.results[0]);
            near += want.iter().zip(within).filter(|(v, off)| **off < 1e-2 + 1e-2 * v.abs()).count();
            all += want.len();
        }
        let text = &call.kernel.source;
        let traits = [
            ("codes between", "& 255i"),
            ("signed codes between", "extractBits(link"),
            ("booleans between", "select(0i, 1i"),
            ("codes made", "return u32("),
            ("booleans made", "return select(0u"),
            ("pairs of words between", "= link"),
            ("strides", "strided(1u"),
            ("constants", "P.c[1].y"),
        ];
        seen.extend(traits.iter().filter(|(_, part)| text.contains(part)).map(|(name, _)| *name));
        seen.extend(call.kernel.name.starts_with("map-deep").then_some("many axes"));
    }
    assert_eq!(seen.len(), 9, "{seen:?}");
    // How far off a long chain may be is not much for most of what it makes.
    assert!(2 * near > all, "{near} of {all}");
    assert!(most == 7 && longest >= 8, "{most} operands, {longest} functions");
}

/// `a · b + c`.
fn product_and_sum() -> Call {
    let f = Element::F32;
    let add = chain_of(&map("Add", &[(f, SAME), (f, SAME)], f));
    add.after(0, &chain_of(&map("Mul", &[(f, SAME), (f, SAME)], f))).unwrap().call().unwrap()
}

#[test]
fn a_chain_that_has_other_bits_than_its_parts_is_refused() {
    let device = device();
    let right = product_and_sum().kernel;
    let other = |name: &str, from: &str, to: &str| {
        let source = right.source.replace(from, to);
        assert_ne!(source, right.source);
        let (trials, parts) = (right.clone(), right.clone());
        Kernel::made_of(name.into(), source, 3, move || trials.trials(), move || parts.parts())
    };
    // Near enough to be the formula in other roundings, as when a product and a sum are one operation.
    let nearly = device.ready(&other("nearly", "link1(v0, ", "link1(v0 * 1.0000002, ")).unwrap_err().to_string();
    assert!(nearly.contains("the bits of word"), "{nearly}");
    let wrong = device.ready(&other("wrong", "link0(o1, o2)", "link0(o1, o1)")).unwrap_err().to_string();
    assert!(wrong.contains("element"), "{wrong}");
    device.ready(&right).unwrap();
}

#[test]
fn what_does_not_make_an_operand_element_for_element_does_not_take_its_place() {
    let (f, repeated) = (Element::F32, [1, 0, 3]);
    let add = chain_of(&map("Add", &[(f, SAME), (f, repeated)], f));
    let exp = chain_of(&map("Exp", &[(f, SAME)], f));
    let equal = chain_of(&map("Equal", &[(f, SAME), (f, SAME)], Element::U8));
    assert!(add.after(0, &exp).is_some());
    assert!(add.after(1, &exp).is_none(), "read through strides");
    assert!(add.after(0, &equal).is_none(), "other elements");
    assert!(add.after(2, &exp).is_none(), "no operand");
    // Of another shape with as many elements, unless it is read through strides of its own.
    let of = |shape: &[usize], strides: &[&[usize]]| {
        let operands = strides.iter().map(|s| Operand { element: f, strides: s.to_vec() }).collect();
        let function = function(if strides.len() == 1 { "Exp" } else { "Sub" }).unwrap();
        chain_of(&Map { function, constants: vec![], shape: shape.to_vec(), operands, result: f })
    };
    assert!(add.after(0, &of(&[105], &[&[1]])).is_some());
    assert!(add.after(0, &of(&[15, 7], &[&[7, 1], &[0, 0]])).is_some());
    assert!(add.after(0, &of(&[15, 7], &[&[7, 1], &[0, 1]])).is_none());
    assert!(add.after(0, &of(&[104], &[&[1]])).is_none());
    assert!(add.united(0, 1).is_none() && add.after(0, &exp).unwrap().united(0, 1).is_none());
}

#[test]
fn functions_of_a_chain_read_what_they_read_before_it_was_joined_to_another() {
    let f = Element::F32;
    let of = |name: &str, n: usize| chain_of(&map(name, &vec![(f, SAME); n], f));
    let name = |chain: &Chain| chain.call().unwrap().kernel.name.clone();
    let first = of("Exp", 1).after(0, &of("Mul", 2)).unwrap();
    assert_eq!(name(&first), "map-fefe-Mul_0_1_f-Exp_v0_f");
    let [left, right] = [0, 1].map(|k| of("Sub", 2).after(k, &first).unwrap());
    assert_eq!(name(&left), "map-fefefe-Mul_1_2_f-Exp_v0_f-Sub_v1_0_f");
    assert_eq!(name(&right), "map-fefefe-Mul_1_2_f-Exp_v0_f-Sub_0_v1_f");
    assert_eq!(name(&right.united(0, 1).unwrap()), "map-fefe-Mul_0_1_f-Exp_v0_f-Sub_0_v1_f");
    assert_eq!(name(&right.united(0, 2).unwrap()), "map-fefe-Mul_1_0_f-Exp_v0_f-Sub_0_v1_f");
}

#[test]
fn a_chain_that_would_bind_more_than_a_device_has_is_none() {
    let f = Element::F32;
    let add = || chain_of(&map("Add", &[(f, SAME), (f, SAME)], f));
    let mut sum = add();
    while sum.operands() < 7 {
        sum = sum.after(0, &add()).unwrap();
        assert!(sum.call().is_some());
    }
    let more = sum.after(0, &add()).unwrap();
    assert!(more.call().is_none(), "{} operands", more.operands());
    // Of one operand, functions end somewhere, too.
    let square = || chain_of(&map("Square", &[(f, SAME)], f));
    let mut long = square();
    while let Some(next) = long.after(0, &square()).filter(|c| c.call().is_some()) {
        long = next;
    }
    assert!((8..=32).contains(&long.links()), "{} functions", long.links());
}
