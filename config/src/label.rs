//! Jenkins labels and label expressions.
//!
//! The grammar is that of Jenkins' `LabelExpressionLexer.g4` and `LabelExpressionParser.g4`: `!` binds tightest and
//! stands before a name or parentheses, then come `&&`, `||`, `->` (which does not chain) and `<->`.

use std::fmt;
use std::str::FromStr;

/// The labels of a template.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(transparent)]
pub struct LabelSet(
    /// In the order in which they are written. A label with a space or an operator is quoted in a label expression.
    #[schemars(length(min = 1), inner(regex(pattern = r#"^[^\s"'\\]([^"'\\]*[^\s"'\\])?$"#)))]
    pub Vec<String>,
);

/// A label expression, which displays as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelExpression {
    text: String,
    term: Term,
}

/// Chains are lists, so only parentheses and `!` nest.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    Name(String),
    Not(Box<Term>),
    All(Vec<Term>),
    Any(Vec<Term>),
    Implies(Box<(Term, Term)>),
    Iff(Vec<Term>),
}

/// What is wrong with an expression, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at character {position}")]
pub struct LabelError {
    /// Counted from 1.
    pub position: usize,
    /// What is wrong.
    pub message: String,
}

impl LabelExpression {
    /// Whether a node with these labels satisfies it.
    pub fn matches(&self, labels: &LabelSet) -> bool {
        self.term.matches(labels)
    }

    /// The label, if the expression is a single one.
    pub fn as_label(&self) -> Option<&str> {
        match &self.term {
            Term::Name(name) => Some(name),
            _ => None,
        }
    }
}

impl Term {
    fn matches(&self, labels: &LabelSet) -> bool {
        match self {
            Self::Name(name) => labels.0.contains(name),
            Self::Not(term) => !term.matches(labels),
            Self::All(terms) => terms.iter().all(|term| term.matches(labels)),
            Self::Any(terms) => terms.iter().any(|term| term.matches(labels)),
            Self::Implies(terms) => !terms.0.matches(labels) || terms.1.matches(labels),
            // From the left; `true` is the neutral element.
            Self::Iff(terms) => terms.iter().fold(true, |left, right| left == right.matches(labels)),
        }
    }
}

impl FromStr for LabelExpression {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let mut parser = Parser { tokens: lex(text)?, next: 0, end: text.chars().count() + 1 };
        let term = parser.iff(0)?;
        match parser.tokens.get(parser.next) {
            None => Ok(Self { text: text.to_owned(), term }),
            Some((position, token)) => Err(LabelError { position: *position, message: format!("unexpected {token}") }),
        }
    }
}

impl fmt::Display for LabelExpression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    And,
    Or,
    Not,
    Implies,
    Iff,
    Open,
    Close,
    Name(String),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::And => "'&&'",
            Self::Or => "'||'",
            Self::Not => "'!'",
            Self::Implies => "'->'",
            Self::Iff => "'<->'",
            Self::Open => "'('",
            Self::Close => "')'",
            Self::Name(name) => return write!(f, "label {name:?}"),
        })
    }
}

/// The tokens, each with its position.
fn lex(text: &str) -> Result<Vec<(usize, Token)>, LabelError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&first) = chars.get(at) {
        let (token, length) = match &chars[at..] {
            [' ' | '\t', ..] => {
                at += 1;
                continue;
            }
            ['&', '&', ..] => (Token::And, 2),
            ['|', '|', ..] => (Token::Or, 2),
            ['!', ..] => (Token::Not, 1),
            ['-', '>', ..] => (Token::Implies, 2),
            ['<', '-', '>', ..] => (Token::Iff, 3),
            ['(', ..] => (Token::Open, 1),
            [')', ..] => (Token::Close, 1),
            ['"', ..] => quoted(&chars, at)?,
            rest => match atom(rest) {
                0 => return Err(LabelError { position: at + 1, message: format!("unexpected character {first:?}") }),
                length => (Token::Name(rest[..length].iter().collect()), length),
            },
        };
        tokens.push((at + 1, token));
        at += length;
    }
    Ok(tokens)
}

/// The length of the lexer's `ATOM` at the beginning: a `-` is part of it unless it begins an arrow.
fn atom(chars: &[char]) -> usize {
    let belongs = |(index, c): (usize, &char)| match c {
        '-' => chars.get(index + 1) != Some(&'>'),
        c => !"&|!<>() \t\"'".contains(*c),
    };
    chars.iter().enumerate().take_while(|&one| belongs(one)).count()
}

/// The lexer's `STRINGLITERAL`, unescaped as `QuotedStringTokenizer.unquote` does; and its length.
fn quoted(chars: &[char], start: usize) -> Result<(Token, usize), LabelError> {
    let error = |at: usize, message: &str| LabelError { position: at + 1, message: message.into() };
    let mut name = String::new();
    let mut at = start + 1;
    while let Some(&c) = chars.get(at) {
        match c {
            '"' => return Ok((Token::Name(name), at + 1 - start)),
            '\r' | '\n' => return Err(error(at, "a line break in quotes")),
            '\\' => {
                name.push(match chars.get(at + 1) {
                    Some('b') => '\u{8}',
                    Some('t') => '\t',
                    Some('n') => '\n',
                    Some('f') => '\u{c}',
                    Some('r') => '\r',
                    Some(c @ ('"' | '\'' | '\\')) => *c,
                    _ => return Err(error(at, "an unknown escape in quotes")),
                });
                at += 1;
            }
            c => name.push(c),
        }
        at += 1;
    }
    Err(error(start, "a quote that is not closed"))
}

/// Deeper nesting is refused: a message must not exhaust the stack.
const DEPTH: usize = 64;

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    end: usize,
}

impl Parser {
    fn take(&mut self, wanted: &Token) -> bool {
        let found = self.tokens.get(self.next).is_some_and(|(_, token)| token == wanted);
        self.next += usize::from(found);
        found
    }

    /// One operand, or several with the operator between them.
    fn chain(
        &mut self,
        operator: &Token,
        depth: usize,
        operand: fn(&mut Self, usize) -> Result<Term, LabelError>,
        join: fn(Vec<Term>) -> Term,
    ) -> Result<Term, LabelError> {
        let first = operand(self, depth)?;
        if !self.take(operator) {
            return Ok(first);
        }
        let mut terms = vec![first, operand(self, depth)?];
        while self.take(operator) {
            terms.push(operand(self, depth)?);
        }
        Ok(join(terms))
    }

    fn iff(&mut self, depth: usize) -> Result<Term, LabelError> {
        self.chain(&Token::Iff, depth, Self::implies, Term::Iff)
    }

    fn implies(&mut self, depth: usize) -> Result<Term, LabelError> {
        let left = self.or(depth)?;
        if self.take(&Token::Implies) { Ok(Term::Implies(Box::new((left, self.or(depth)?)))) } else { Ok(left) }
    }

    fn or(&mut self, depth: usize) -> Result<Term, LabelError> {
        self.chain(&Token::Or, depth, Self::and, Term::Any)
    }

    fn and(&mut self, depth: usize) -> Result<Term, LabelError> {
        self.chain(&Token::And, depth, Self::not, Term::All)
    }

    fn not(&mut self, depth: usize) -> Result<Term, LabelError> {
        if self.take(&Token::Not) { Ok(Term::Not(Box::new(self.name(depth)?))) } else { self.name(depth) }
    }

    fn name(&mut self, depth: usize) -> Result<Term, LabelError> {
        let Some((position, token)) = self.tokens.get(self.next).cloned() else {
            return Err(LabelError { position: self.end, message: "a label or '(' is missing".into() });
        };
        let error = |message: String| Err(LabelError { position, message });
        self.next += 1;
        match token {
            Token::Name(name) => Ok(Term::Name(name)),
            Token::Open if depth == DEPTH => error(format!("more than {DEPTH} parentheses in each other")),
            Token::Open => {
                let inner = self.iff(depth + 1)?;
                if self.take(&Token::Close) {
                    return Ok(inner);
                }
                match self.tokens.get(self.next) {
                    Some((position, token)) => {
                        Err(LabelError { position: *position, message: format!("unexpected {token}") })
                    }
                    None => error("a '(' that is not closed".into()),
                }
            }
            other => error(format!("unexpected {other} in place of a label or '('")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(names: &str) -> LabelSet {
        LabelSet(names.split_whitespace().map(str::to_owned).collect())
    }

    #[test]
    fn expressions_match_as_in_jenkins() {
        for (expression, has, matches) in [
            ("linux", "linux maven", true),
            ("Linux", "linux", false),
            ("linux && maven", "linux maven", true),
            ("linux&&docker", "linux maven", false),
            ("docker || maven", "linux maven", true),
            ("!windows", "linux", true),
            ("!windows && linux", "linux", true),
            ("!(windows || mac)", "linux", true),
            ("!(!linux)", "linux", true),
            ("a || b && c", "a", true),
            ("(a || b) && c", "a", false),
            ("a -> b", "", true),
            ("a -> b", "a", false),
            ("a->b", "a b", true),
            ("(a -> b) -> c", "", false),
            ("a -> (b -> c)", "", true),
            ("a <-> b", "", true),
            ("a <-> b", "a", false),
            ("a <-> b <-> c", "a", true),
            ("a <-> b <-> c", "a b", false),
            ("a || b -> c", "b", false),
            ("a -> b <-> c", "c", true),
            ("  ( a )\t", "a", true),
            ("\"with space\"", "linux", false),
            ("\"linux\" && maven", "linux maven", true),
            ("\"a&&b\"", "a b", false),
            ("\"\"", "a", false),
            ("!\"\"", "a", true),
            // JENKINS-66613: dashes.
            ("jdk-17", "jdk-17", true),
            ("--a----b-c-", "--a----b-c-", true),
            ("-", "-", true),
            ("a-b->c", "a-b", false),
            ("a-b->c", "a-b c", true),
            ("a-->b", "a-", false),
            ("a->-b", "a -b", true),
            ("node.js/18", "node.js/18", true),
            ("größe", "größe", true),
        ] {
            let parsed: LabelExpression = expression.parse().expect(expression);
            assert_eq!(parsed.matches(&labels(has)), matches, "{expression} on {has}");
            assert_eq!(parsed.to_string(), expression);
        }
    }

    #[test]
    fn escapes_in_quotes_are_taken_off() {
        for (expression, label) in [(r#""abc\\\"def""#, "abc\\\"def"), (r#""\b\t\n\f\r\'""#, "\u{8}\t\n\u{c}\r'")] {
            let parsed: LabelExpression = expression.parse().expect(expression);
            assert_eq!(parsed.as_label(), Some(label));
        }
        assert_eq!("!a".parse::<LabelExpression>().expect("good").as_label(), None);
    }

    #[test]
    fn refuses_invalid_expressions_and_says_where() {
        for (expression, position) in [
            ("", 1),
            ("   ", 4),
            ("foo bar", 5),
            ("foo (bar)", 5),
            ("foo(bar)", 4),
            ("a <- b", 3),
            ("a -< b", 4),
            ("a - b", 3),
            ("->", 1),
            ("-<", 2),
            ("-!", 2),
            ("a &&", 5),
            ("&& a", 1),
            ("a & b", 3),
            ("a | b", 3),
            ("(a", 1),
            ("(a b)", 4),
            ("()", 2),
            ("a)", 2),
            ("!!a", 2),
            ("!", 2),
            ("a -> b -> c", 8),
            ("\"a", 1),
            ("\"a\\x\"", 3),
            ("\"a\\", 3),
            ("\"a\nb\"", 3),
            ("'a'", 1),
            ("a > b", 3),
            ("é é", 3),
        ] {
            let error = expression.parse::<LabelExpression>().expect_err(expression);
            assert_eq!(error.position, position, "{expression}: {error}");
        }
    }

    #[test]
    fn survives_a_hostile_expression() {
        let nested = |depth: usize| format!("{}a{}", "!(".repeat(depth), ")".repeat(depth)).parse::<LabelExpression>();
        assert!(nested(DEPTH).is_ok_and(|expression| expression.matches(&labels("a"))));
        assert_eq!(nested(DEPTH + 1).expect_err("too deep").position, 2 * DEPTH + 2);
        assert!(nested(100_000).is_err());
        for operator in ["&&", "||", "<->"] {
            let long = vec!["a"; 100_000].join(operator).parse::<LabelExpression>().expect("a long one");
            assert!(long.matches(&labels("a")), "{operator}");
        }
    }

    /// Jenkins' truth tables, written down once more, with two operands each.
    #[derive(Debug, Clone)]
    enum Model {
        Name(char),
        Not(Box<Model>),
        Two(usize, Box<Model>, Box<Model>),
    }

    type Operator = (&'static str, fn(bool, bool) -> bool);

    /// The loosest first.
    const OPERATORS: [Operator; 4] =
        [("<->", |a, b| a == b), ("->", |a, b| !a || b), ("||", |a, b| a || b), ("&&", |a, b| a && b)];

    impl Model {
        fn holds(&self, has: &LabelSet) -> bool {
            match self {
                Self::Name(name) => has.0.contains(&name.to_string()),
                Self::Not(one) => !one.holds(has),
                Self::Two(operator, a, b) => OPERATORS[*operator].1(a.holds(has), b.holds(has)),
            }
        }

        fn strength(&self) -> usize {
            match self {
                Self::Two(operator, ..) => *operator,
                Self::Not(_) => OPERATORS.len(),
                Self::Name(_) => OPERATORS.len() + 1,
            }
        }

        /// With only the parentheses that precedence requires.
        fn written(&self) -> String {
            let operand = |one: &Self, least: usize| {
                if one.strength() < least { format!("( {})", one.written()) } else { one.written() }
            };
            match self {
                Self::Name('a') => "\"a\"".into(),
                Self::Name(name) => name.to_string(),
                Self::Not(one) => format!("!{}", operand(one, OPERATORS.len() + 1)),
                Self::Two(operator, a, b) => {
                    let chains = OPERATORS[*operator].0 != "->";
                    let left = operand(a, operator + usize::from(!chains));
                    format!("{left} {} {}", OPERATORS[*operator].0, operand(b, operator + 1))
                }
            }
        }
    }

    fn models() -> impl Strategy<Value = Model> {
        prop::char::range('a', 'd').prop_map(Model::Name).prop_recursive(6, 48, 2, |inner| {
            prop_oneof![
                inner.clone().prop_map(|one| Model::Not(Box::new(one))),
                (0..OPERATORS.len(), inner.clone(), inner).prop_map(|(operator, a, b)| Model::Two(
                    operator,
                    Box::new(a),
                    Box::new(b)
                )),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_expression_agrees_with_the_model(model in models()) {
            let text = model.written();
            let parsed: LabelExpression = text.parse().expect(&text);
            prop_assert_eq!(parsed.to_string(), text.clone());
            for bits in 0..16 {
                let has = ('a'..='d').enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
                let has = LabelSet(has.map(|(_, name)| name.to_string()).collect());
                prop_assert_eq!(parsed.matches(&has), model.holds(&has), "{} on {:?}", text, has);
            }
        }

        #[test]
        fn any_name_can_be_quoted(name in "[^\r\n]{0,12}") {
            let text = format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
            let parsed: LabelExpression = text.parse().expect(&text);
            prop_assert_eq!(parsed.as_label(), Some(name.as_str()));
        }

        #[test]
        fn the_parser_never_panics(text in ".{0,40}|[ab&|!<>()\" \\\\-]{0,40}") {
            if let Err(error) = text.parse::<LabelExpression>() {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.position));
            }
        }
    }
}
