// Small charts in SVG: lines over time with an axis, and sparklines. Colours and dashes come from the style sheet.
const SPACE = "http://www.w3.org/2000/svg";
const LEFT = 40;
const TOP = 8;
const BOTTOM = 18;

function shape(name, attributes, text) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The next "round" number at or above the highest value: 1, 2 or 5 times a power of ten.
function ceiling(highest) {
  const power = 10 ** Math.floor(Math.log10(highest));
  return power * [1, 2, 5, 10].find((factor) => highest <= factor * power * 1.0001);
}

// Runs of neighbouring points that have a value: a moment without one is a gap, not a zero.
function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point[1] === null) found.push([]);
    else found.at(-1).push(point);
  }
  return found.filter((run) => run.length);
}

export function number(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  return value.toLocaleString("en", { maximumFractionDigits: value >= 100 ? 0 : digits });
}

// series: [{name, area?, values}], each value or null at the same moments; seconds: how long ago each moment was;
// least: the lowest top of the axis, 2 where halves make no sense.
export function lines(svg, series, seconds, span, least = 1) {
  const width = svg.clientWidth || 300;
  const height = svg.clientHeight || 140;
  const top = ceiling(Math.max(least, ...series.flatMap((each) => each.values.map((value) => value ?? 0))));
  const x = (ago) => width - 4 - (Math.min(ago, span) / span) * (width - 4 - LEFT);
  const y = (value) => height - BOTTOM - (value / top) * (height - TOP - BOTTOM);
  const shapes = [];
  for (const share of [0, 0.5, 1]) {
    const level = y(top * share);
    shapes.push(shape("line", { class: "grid", x1: LEFT, x2: width, y1: level, y2: level }));
    shapes.push(shape("text", { x: LEFT - 6, y: level + 4, "text-anchor": "end" }, number(top * share, 2)));
  }
  shapes.push(shape("text", { x: LEFT, y: height - 3 }, `${span / 60} min ago`));
  shapes.push(shape("text", { x: width - 2, y: height - 3, "text-anchor": "end" }, "now"));
  for (const { name, area, values } of series) {
    for (const run of runs(values.map((value, index) => [seconds[index], value]))) {
      const path = run.map(([ago, value]) => `${x(ago).toFixed(1)},${y(value).toFixed(1)}`);
      if (area) {
        const [first, last] = [x(run[0][0]), x(run.at(-1)[0])];
        shapes.push(shape("polygon", { class: "area", points: `${first},${y(0)} ${path.join(" ")} ${last},${y(0)}` }));
      }
      shapes.push(shape("polyline", { class: `line ${name}`, points: path.join(" ") }));
    }
  }
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(...shapes);
}

export function sparkline(svg, values) {
  const [width, height] = [112, 22];
  const top = Math.max(...values, 0) || 1;
  const step = width / Math.max(1, values.length - 1);
  const path = values.map((value, index) => `${(index * step).toFixed(1)},${(height - 2 - (value / top) * (height - 4)).toFixed(1)}`);
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren(
    shape("polygon", { class: "area", points: `0,${height} ${path.join(" ")} ${width},${height}` }),
    shape("polyline", { class: "line", points: path.join(" ") }),
  );
}

export function emptySparkline() {
  return shape("svg", { class: "course", "aria-hidden": "true" });
}
