//! Bounds on files, functions and lines. What is longer holds more than a reader keeps in mind at once.

use crate::Finding;
use crate::tree::Tree;

/// Lines of a file: about ten screens, the size from which the files of other projects that were read had a second subject.
pub const FILE: usize = 600;

/// Lines between a function's braces: one tall screen.
pub const FUNCTION: usize = 80;

/// Columns of a line, comments too: two files side by side on a wide screen.
pub const LINE: usize = 140;

/// Kinds of files whose lines are measured: those that are written by hand and cannot be folded by an editor.
const MEASURED: [&str; 3] = [".rs", ".proto", ".wit"];

/// Looks for files that are too long.
pub fn files(tree: &Tree<'_>) -> Vec<Finding> {
    let long = tree.sources.iter().enumerate().filter_map(|(at, source)| {
        let lines = source.text.lines().count();
        let message = || format!("has {lines} lines, {} too many: split it by subject", lines - FILE);
        (lines > FILE).then(|| tree.finding(at, lines, message()))
    });
    long.collect()
}

/// Looks for functions that are too long.
pub fn functions(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (at, source) in tree.sources.iter().enumerate() {
        for function in source.functions() {
            let lines = function.lines;
            if lines > FUNCTION {
                let message = format!(
                    "the body of `{}` has {lines} lines, {} too many: give its parts names",
                    function.name,
                    lines - FUNCTION
                );
                findings.push(tree.finding(at, function.line, message));
            }
        }
    }
    findings
}

/// Looks for lines that are too long.
pub fn lines(tree: &Tree<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let measured = tree.files.iter().filter(|file| MEASURED.iter().any(|kind| file.path.ends_with(kind)));
    for file in measured {
        for (index, line) in file.text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > LINE {
                let message = format!("has {columns} columns, {} too many: wrap it", columns - LINE);
                findings.push(Finding { path: file.path.clone(), line: index + 1, message });
            }
        }
    }
    findings
}
