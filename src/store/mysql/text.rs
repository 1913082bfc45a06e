//! Names and other parts of texts, as the servers write them.

/// A name in backticks or, under `ANSI_QUOTES`, in double quotes, and the text after it.
pub(super) fn identifier(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|quote| matches!(quote, '`' | '"'))?;
    let (mut name, mut rest) = (String::new(), &text[1..]);
    loop {
        let (part, behind) = rest.split_once(quote)?;
        name.push_str(part);
        let Some(more) = behind.strip_prefix(quote) else {
            let is_name = (1..=64).contains(&name.chars().count()) && !name.contains(char::is_control);
            return is_name.then_some((name, behind));
        };
        name.push(quote);
        rest = more;
    }
}

/// The table in `` `shop`.`orders` ``, and the text after it.
pub(super) fn qualified(text: &str) -> Option<(String, &str)> {
    let (_, rest) = identifier(text)?;
    identifier(rest.strip_prefix('.')?)
}

/// A name in backticks, which both servers accept in every SQL mode.
pub(super) fn backquoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A text in single quotes.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// The text before and after `this`, outside backticks and parentheses.
pub(super) fn outside<'a>(text: &'a str, this: &str) -> Option<(&'a str, &'a str)> {
    let (mut quoted, mut depth) = (false, 0);
    for (place, c) in text.char_indices() {
        if !quoted && depth == 0 && text[place..].starts_with(this) {
            return Some((&text[..place], &text[place + this.len()..]));
        }
        match c {
            '`' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The name at the beginning, and the text after it.
pub(super) fn word(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len()))
}
