//! What the demonstration prints: a summary of twelve lines, or every step with `-v`.

use std::fmt::Display;

/// Chooses between the two.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Whether every step is printed.
    pub verbose: bool,
}

impl Output {
    /// A line of the summary, under the name of its part of the story.
    pub fn summary(self, part: &str, text: impl Display) {
        if !self.verbose {
            println!("{part:<10} {text}");
        }
    }

    /// A line of the detailed report.
    pub fn detail(self, text: impl Display) {
        if self.verbose {
            println!("{text}");
        }
    }

    /// The heading of a part of the detailed report.
    pub fn title(self, text: &str) {
        self.detail(format_args!("\n{text}\n{}", "-".repeat(text.len())));
    }
}
