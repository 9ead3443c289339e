//! Circles of imports: between rooms, and between the files of one room.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::Finding;
use crate::rooms::ROOMS;
use crate::source::Reference;
use crate::tree::{Target, Tree};

/// From each node to those that it uses, with the place (source, line) of one use.
type Graph = BTreeMap<usize, BTreeMap<usize, (usize, usize)>>;

/// Looks for rooms that use each other, directly or through others. Tests do not count.
pub fn rooms(tree: &Tree<'_>) -> Vec<Finding> {
    let graph = graph(tree, Tree::room_named, |at| tree.room(at));
    let found = circles(&graph).into_iter().map(|circle| {
        let steps = circle.windows(2).map(|pair| {
            let (at, line) = graph[&pair[0]][&pair[1]];
            let (from, to) = (ROOMS[pair[0]].name, ROOMS[pair[1]].name);
            format!("{from} uses {to} at {}:{line}", tree.sources[at].path)
        });
        let steps: Vec<String> = steps.collect();
        let (at, line) = graph[&circle[0]][&circle[1]];
        let message = format!(
            "rooms use each other in a circle: {}. Move what both need to a room below them, or put it behind a port",
            steps.join(", ")
        );
        tree.finding(at, line, message)
    });
    found.collect()
}

/// Looks for files of one room that use each other: one finding for each file of a circle. Re-exports are followed to where the item is;
/// what a file only declares or re-exports it does not use. `a/b.rs` may use what `a.rs` defines: the two are one subject in two files.
/// Tests do not count.
pub fn files(tree: &Tree<'_>) -> Vec<Finding> {
    let to_file = |tree: &Tree<'_>, at, reference: &_| match tree.resolve(at, reference) {
        Target::File(at) => Some(at),
        Target::Package(_) | Target::Elsewhere => None,
    };
    let mut graph = graph(tree, to_file, Some);
    for (from, uses) in &mut graph {
        uses.retain(|to, _| tree.room(*from) == tree.room(*to) && !tree.is_above(*to, *from));
    }
    let members = members(&graph).into_iter().filter_map(|at| {
        let circle = shortest(&graph, at)?;
        let names: Vec<&str> = circle.iter().map(|at| tree.sources[*at].path).collect();
        let (_, line) = graph[&circle[0]][&circle[1]];
        let message =
            format!("is in a circle of files: {}. Move what both need into a file of its own", names.join(" -> "));
        Some(tree.finding(at, line, message))
    });
    members.collect()
}

/// The graph whose nodes are what `node` says of sources, with an edge for each reference to what `leads` says of it.
fn graph<'a>(
    tree: &Tree<'a>,
    leads: impl Fn(&Tree<'a>, usize, &Reference<'a>) -> Option<usize>,
    node: impl Fn(usize) -> Option<usize>,
) -> Graph {
    let mut graph = Graph::new();
    for (at, source) in tree.sources.iter().enumerate() {
        let Some(from) = node(at) else { continue };
        let reexports = source.imports.iter().filter(|import| import.public).map(|import| &import.what);
        let reexports: BTreeSet<*const _> = reexports.map(std::ptr::from_ref).collect();
        for reference in source.all() {
            if tree.is_test(at, reference) || reexports.contains(&std::ptr::from_ref(reference)) {
                continue;
            }
            if let Some(to) = leads(tree, at, reference).filter(|to| *to != from) {
                graph.entry(from).or_default().entry(to).or_insert((at, reference.line));
            }
        }
    }
    graph
}

/// One shortest circle for each set of nodes that all reach each other.
fn circles(graph: &Graph) -> Vec<Vec<usize>> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for start in members(graph) {
        if seen.contains(&start) {
            continue;
        }
        let from_here = reached(graph, start);
        seen.extend(from_here.into_iter().filter(|there| reached(graph, *there).contains(&start)));
        found.extend(shortest(graph, start));
    }
    found
}

/// Every node that reaches itself.
fn members(graph: &Graph) -> Vec<usize> {
    graph.keys().copied().filter(|start| reached(graph, *start).contains(start)).collect()
}

fn reached(graph: &Graph, start: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut next = vec![start];
    while let Some(node) = next.pop() {
        let new = graph.get(&node).into_iter().flat_map(|uses| uses.keys()).filter(|to| reached.insert(**to));
        next.extend(new.copied().collect::<Vec<_>>());
    }
    reached
}

/// The shortest way from a node to itself, both ends included.
fn shortest(graph: &Graph, start: usize) -> Option<Vec<usize>> {
    let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
    let mut next = VecDeque::from([start]);
    while let Some(node) = next.pop_front() {
        for to in graph.get(&node).into_iter().flat_map(|uses| uses.keys()) {
            if *to == start {
                let mut way = vec![start, node];
                while let Some(before) = way.last().and_then(|last| came_from.get(last)) {
                    way.push(*before);
                }
                way.reverse();
                return Some(way);
            }
            if !came_from.contains_key(to) {
                came_from.insert(*to, node);
                next.push_back(*to);
            }
        }
    }
    None
}
