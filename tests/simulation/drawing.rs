//! Draws the dashboard as SVG, with the widgets at their places in the grid.

use std::fmt::Write as _;

use jiff::Timestamp;
use local::cloudformation::Stack;
use serde_json::Value;
use tests::cloudwatch::{self, Metrics, State};
use tests::insights::{self, Row, Table};

use super::dashboard::{Data, SHOWN, Series, binned, series};

const NOTE: &str = "Drawn by this project from the dashboard's JSON, with three hours of a simulated day. It is no screenshot of CloudWatch.";

/// The size of a cell of the grid in pixels, and the space above it.
const CELL: (f64, f64) = (40.0, 34.0);
const HEAD: f64 = 24.0;

/// Columns of the grid ("Dashboard Body Structure and Syntax").
const COLUMNS: f64 = 24.0;

/// Of CloudWatch's graphs.
const COLOURS: [&str; 8] = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f"];

const STYLE: &str = "
    text { fill: #1f2328; }
    .page { fill: #f2f3f3; }
    .widget { fill: #ffffff; stroke: #d1d9e0; }
    .line { stroke: #d1d9e0; }
    .small { fill: #59636e; font-size: 9.5px; }
    .title { font-weight: 600; font-size: 11.5px; }
    .heading { font-weight: 600; font-size: 16px; }
    .alarm { fill: #d1242f; }
    .on-alarm { fill: #ffffff; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .page { fill: #0d1117; }
      .widget { fill: #151b23; stroke: #3d444d; }
      .line { stroke: #3d444d; }
      .small { fill: #9198a1; }
    }
  ";

/// The picture; each widget has its JSON as description.
pub(crate) fn picture(stack: &Stack, widgets: &[Value], data: &Data) -> String {
    let bottom = widgets.iter().map(|widget| number(&widget["y"]) + number(&widget["height"])).fold(0.0, f64::max);
    let (width, height) = (COLUMNS * CELL.0, HEAD + bottom * CELL.1);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"system-ui, sans-serif\" \
         font-size=\"10.5\" role=\"img\" aria-labelledby=\"title\">\n\
         <title id=\"title\">{NOTE}</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{width}\" height=\"{height}\"/>\n<text class=\"small\" x=\"8\" y=\"16\">{NOTE}</text>\n"
    );
    for widget in widgets {
        let [x, y, width, height] = ["x", "y", "width", "height"].map(|key| number(&widget[key]));
        let size = (width * CELL.0 - 6.0, height * CELL.1 - 6.0);
        let (left, top) = (x * CELL.0 + 3.0, HEAD + y * CELL.1 + 3.0);
        let json = escaped(&widget.to_string());
        let _ = writeln!(svg, "<g transform=\"translate({left} {top})\"><desc>{json}</desc>");
        let properties = &widget["properties"];
        if let Some(text) = properties["markdown"].as_str() {
            let text = escaped(text.trim_start_matches(['#', ' ']));
            let _ = writeln!(svg, "<text class=\"heading\" x=\"5\" y=\"20\">{text}</text></g>");
            continue;
        }
        let title = escaped(&clipped(properties["title"].as_str().expect("a title"), size.0 - 16.0, 6.3));
        let (width, height) = size;
        let _ = writeln!(
            svg,
            "<rect class=\"widget\" width=\"{width}\" height=\"{height}\" rx=\"6\"/><text class=\"title\" x=\"8\" y=\"17\">{title}</text>"
        );
        let result = || insights::run(properties["query"].as_str().expect("a query"), &data.events);
        match (widget["type"].as_str(), properties["view"].as_str()) {
            (Some("alarm"), _) => draw_alarms(&mut svg, properties, stack, &data.metrics, size),
            (Some("metric"), Some("timeSeries")) => {
                draw_graph(&mut svg, properties, &series(properties, &data.metrics), size);
            }
            (Some("log"), Some("timeSeries")) => draw_graph(&mut svg, properties, &binned(&result()), size),
            (Some("log"), Some("table")) => draw_table(&mut svg, &result(), size),
            _ => panic!("{widget} is not understood"),
        }
        svg.push_str("</g>\n");
    }
    svg + "</svg>\n"
}

fn draw_alarms(svg: &mut String, properties: &Value, stack: &Stack, metrics: &Metrics, (width, height): (f64, f64)) {
    let arns: Vec<_> = properties["alarms"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (across, down) = (5.0, (arns.len() as f64 / 5.0).ceil());
    let (tile, step) = ((width - 16.0) / across, (height - 30.0) / down);
    for (at, arn) in arns.iter().enumerate() {
        let ids = stack.of_type("AWS::CloudWatch::Alarm").expect("alarms");
        let id =
            ids.into_iter().find(|id| stack.attribute(id, "Arn").is_ok_and(|known| known == *arn)).expect("an alarm");
        let alarm = stack.properties(id).expect("an alarm");
        let (x, y) = (8.0 + (at % 5) as f64 * tile, 25.0 + (at / 5) as f64 * step);
        let (class, on, dot) = match cloudwatch::state(&alarm, metrics, SHOWN.end) {
            State::Ok => ("widget", "", "#2ca02c"),
            State::Alarm => ("alarm", " class=\"on-alarm\"", "#ffffff"),
            State::InsufficientData => ("widget", "", "#7f7f7f"),
        };
        let (width, height, middle) = (tile - 4.0, step - 4.0, y + step / 2.0 - 2.0);
        let _ = writeln!(
            svg,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\"/>\
             <circle cx=\"{:.1}\" cy=\"{middle:.1}\" r=\"4\" fill=\"{dot}\"/><text{on} x=\"{:.1}\" y=\"{:.1}\">{id}</text>",
            x + 11.0,
            x + 20.0,
            middle + 3.5
        );
    }
}

fn draw_table(svg: &mut String, table: &Table, (width, height): (f64, f64)) {
    const LINE: f64 = 14.5;
    const LETTER: f64 = 5.7;
    let cell = |row: &Row, column: &String| row.get(column).map(shown).unwrap_or_default();
    let rows: Vec<_> = table.rows.iter().take(((height - 44.0) / LINE) as usize).collect();
    let widest = |column: &String| {
        let lengths = rows.iter().map(|row| cell(row, column).chars().count());
        lengths.chain([column.chars().count()]).max().unwrap_or_default() as f64 * LETTER + 16.0
    };
    let mut widths: Vec<f64> = table.columns.iter().map(widest).collect();
    while widths.iter().sum::<f64>() > width - 16.0 {
        let most = widths.iter().copied().fold(0.0, f64::max);
        widths.iter_mut().filter(|width| **width == most).for_each(|width| *width -= 2.0);
    }
    let mut line = |y: f64, class: &str, text: &dyn Fn(&String) -> String| {
        let mut x = 8.0;
        for (column, width) in table.columns.iter().zip(&widths) {
            let text = escaped(&clipped(&text(column), width - 8.0, LETTER));
            let _ = writeln!(svg, "<text{class} x=\"{x:.0}\" y=\"{y:.1}\">{text}</text>");
            x += width;
        }
    };
    line(36.0, " class=\"small\"", &Clone::clone);
    for (at, row) in rows.iter().enumerate() {
        line(51.5 + at as f64 * LINE, "", &|column| cell(row, column));
    }
    let _ = writeln!(svg, "<path class=\"line\" d=\"M8 40.5H{}\"/>", width - 8.0);
    if rows.is_empty() {
        no_data(svg, (width, height));
    }
}

fn no_data(svg: &mut String, (width, height): (f64, f64)) {
    let (x, y) = (width / 2.0, height / 2.0);
    let _ = writeln!(
        svg,
        "<text class=\"small\" x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">no data in the simulated day</text>"
    );
}

/// Draws the legend at the bottom, and returns its height.
fn draw_legend(svg: &mut String, series: &[Series], (width, height): (f64, f64)) -> f64 {
    let (mut places, mut x, mut y) = (Vec::new(), 8.0, 0.0);
    for one in series {
        let length = one.label.chars().count() as f64 * 5.2 + 20.0;
        if x > 8.0 && x + length > width {
            (x, y) = (8.0, y + 13.0);
        }
        places.push((x, y));
        x += length;
    }
    let top = height - y - 13.0;
    for ((one, (x, y)), colour) in series.iter().zip(places).zip(COLOURS.iter().cycle()) {
        let (y, label) = (top + y + 5.0, escaped(&one.label));
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.0}\" y=\"{:.1}\" width=\"8\" height=\"8\" fill=\"{colour}\"/><text class=\"small\" x=\"{:.0}\" y=\"{y:.1}\">{label}</text>",
            y - 7.5,
            x + 11.0
        );
    }
    top
}

/// Draws a graph; of stacked ones, each line has those before it below.
fn draw_graph(svg: &mut String, properties: &Value, series: &[Series], (width, height): (f64, f64)) {
    let bottom = draw_legend(svg, series, (width, height));
    if series.iter().all(|one| one.points.iter().all(Option::is_none)) {
        return no_data(svg, (width, bottom));
    }
    let is_stacked = properties["stacked"] == true;
    let mut lines: Vec<Vec<Option<f64>>> = series.iter().map(|one| one.points.clone()).collect();
    let mut sums = vec![0.0; lines[0].len()];
    for line in lines.iter_mut().filter(|_| is_stacked) {
        for (point, sum) in line.iter_mut().zip(&mut sums) {
            *sum += point.unwrap_or_default();
            *point = Some(*sum);
        }
    }
    let limits = properties["annotations"]["horizontal"].as_array().map(Vec::as_slice).unwrap_or_default();
    let most = |is_right: bool| {
        let own = series.iter().zip(&lines).filter(|(one, _)| one.is_right == is_right).flat_map(|(_, line)| line);
        let limits = limits.iter().map(|limit| number(&limit["value"])).filter(|_| !is_right);
        own.flatten().copied().chain(limits).fold(0.0, f64::max)
    };
    let has_right = series.iter().any(|one| one.is_right);
    let right = width - if has_right { 30.0 } else { 10.0 };
    let plot = Plot { left: 36.0, right, top: 28.0, bottom: bottom - 20.0 };
    let (left, right) = (Scale::new(most(false)), Scale::new(most(true)));
    plot.draw_axes(svg, &left, has_right.then_some(&right));
    limits.iter().for_each(|limit| plot.draw_limit(svg, limit, &left));
    // Of stacked areas, the largest is drawn first.
    for ((one, line), colour) in series.iter().zip(&lines).zip(COLOURS.iter().cycle()).collect::<Vec<_>>().iter().rev()
    {
        let path = plot.path(line, if one.is_right { &right } else { &left }, is_stacked);
        let _ = match is_stacked {
            true => writeln!(svg, "<path d=\"{path}\" fill=\"{colour}\"/>"),
            // Round ends show a point that is alone.
            false => writeln!(
                svg,
                "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\" stroke-linecap=\"round\"/>"
            ),
        };
    }
}

/// Where a graph is drawn.
struct Plot {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Plot {
    fn y(&self, value: f64, scale: &Scale) -> f64 {
        self.bottom - value / scale.top * (self.bottom - self.top)
    }

    fn draw_axes(&self, svg: &mut String, left: &Scale, right: Option<&Scale>) {
        for tick in left.ticks() {
            let (y, from, to) = (self.y(tick, left), self.left, self.right);
            let _ = writeln!(svg, "<path class=\"line\" d=\"M{from} {y:.1}H{to}\"/>");
        }
        for (scale, x, anchor) in [(Some(left), self.left - 4.0, "end"), (right, self.right + 4.0, "start")] {
            for tick in scale.into_iter().flat_map(Scale::ticks) {
                let (y, text) = (self.y(tick, scale.expect("a scale")) + 3.0, short(tick));
                let _ = writeln!(
                    svg,
                    "<text class=\"small\" x=\"{x}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
                );
            }
        }
        for minute in SHOWN.filter(|minute| minute % 60 == 0) {
            let part = (minute - SHOWN.start) as f64 / (SHOWN.end - SHOWN.start) as f64;
            let (x, y) = (self.left + part * (self.right - self.left), self.bottom + 11.0);
            let _ = writeln!(
                svg,
                "<text class=\"small\" x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{:02}:00</text>",
                minute / 60
            );
        }
    }

    fn draw_limit(&self, svg: &mut String, limit: &Value, scale: &Scale) {
        let (y, from, to) = (self.y(number(&limit["value"]), scale), self.left, self.right);
        let label = escaped(limit["label"].as_str().unwrap_or_default());
        let _ = writeln!(
            svg,
            "<path d=\"M{from} {y:.1}H{to}\" stroke=\"#d62728\" stroke-dasharray=\"4 3\"/><text class=\"small\" x=\"{to}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            y + 10.0
        );
    }

    /// A line with gaps where points are missing, or the area below it.
    fn path(&self, line: &[Option<f64>], scale: &Scale, is_area: bool) -> String {
        let step = (self.right - self.left) / line.len() as f64;
        let mut path = String::new();
        let mut is_drawn = false;
        for (at, point) in line.iter().enumerate() {
            if let Some(value) = point {
                let (x, y) = (self.left + at as f64 * step, self.y(*value, scale));
                let _ = if is_drawn { write!(path, "L{x:.1} {y:.1}") } else { write!(path, "M{x:.1} {y:.1}h0") };
            }
            is_drawn = point.is_some();
        }
        if is_area {
            let (from, to) = (self.left, self.left + (line.len() - 1) as f64 * step);
            let _ = write!(path, "L{to:.1} {bottom:.1}L{from:.1} {bottom:.1}z", bottom = self.bottom);
        }
        path
    }
}

/// An axis from zero.
struct Scale {
    top: f64,
    step: f64,
}

impl Scale {
    fn new(most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        let power = 10_f64.powf((most / 4.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| most / step <= 4.0);
        let step = step.unwrap_or(most);
        Self { top: (most / step).ceil() * step, step }
    }

    fn ticks(&self) -> impl Iterator<Item = f64> + use<> {
        let (top, step) = (self.top, self.step);
        (0..).map(move |at| f64::from(at) * step).take_while(move |tick| *tick <= top * 1.001)
    }
}

// --- Texts ---

fn short(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e4 => format!("{}k", value / 1e3),
        value => format!("{}", (value * 100.0).round() / 100.0),
    }
}

/// A cell of a table: of a time, only that of the day.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => match text.parse::<Timestamp>() {
            Ok(time) => time.strftime("%H:%M:%S").to_string(),
            Err(_) => text.clone(),
        },
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn clipped(text: &str, width: f64, letter: f64) -> String {
    let most = (width / letter) as usize;
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

pub(crate) fn unescaped(text: &str) -> String {
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}
