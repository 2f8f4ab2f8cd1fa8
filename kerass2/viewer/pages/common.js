// What the three pages share. Texts of the server go into the page as text, never as HTML.

// An element with attributes and children; a child that is no element is text.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const find = (id) => document.getElementById(id);

export function say(text) {
  if (find('status').textContent !== text) find('status').textContent = text;
}

// JSON of an address below the page; an error has the server's own words.
export async function get(address, parameters = {}) {
  let response;
  try {
    response = await fetch(`${address}?${new URLSearchParams(parameters)}`);
  } catch {
    throw new Error('The viewer does not answer: has it been ended?');
  }
  if (!response.ok) throw new Error((await response.text()).trim());
  return response.json();
}

export function introduce(about) {
  document.title = `${about.title} · kerass2`;
  find('title').textContent = about.title;
  const isMadeUp = (note) => note.startsWith('SYNTHETIC');
  find('notes').replaceChildren(
    ...about.notes.map((note) => make('p', { class: isMadeUp(note) ? 'notice' : 'quiet' }, note)),
  );
}

// Options of a select: [value, text] pairs.
export function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make('option', { value }, text)));
  if (chosen !== undefined) select.value = chosen;
}

// A table of the server: {caption, columns, rows, texts: columns from the left that hold text}.
export function makeTable({ caption, columns, rows, texts = 1 }) {
  const kind = (index) => (index < texts ? { class: 'text' } : {});
  const cell = (text, index) =>
    index === 0 ? make('th', { scope: 'row', ...kind(index) }, text) : make('td', kind(index), text);
  return make('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': caption },
    make('table', {}, make('caption', {}, caption),
      make('thead', {}, make('tr', {}, ...columns.map((name, index) => make('th', { scope: 'col', ...kind(index) }, name)))),
      make('tbody', {}, ...rows.map((row) => make('tr', {}, ...row.map(cell))))));
}

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A plot of uPlot that follows the reader's colours and the page's width.
// describe() gives {label, x, series: [{name, values, colour, dash, points}], log, legend, xTitle, yTitle}.
export function plot(place, describe) {
  let drawn = null;
  const number = (value) => (value === 0 || (Math.abs(value) >= 1e-3 && Math.abs(value) < 1e5) ? String(+value.toPrecision(4)) : value.toExponential(1));
  function axis(title) {
    const line = { stroke: ink('--line'), width: 1 };
    return {
      stroke: ink('--quiet'), grid: line, ticks: { show: false }, label: title, labelSize: 20, labelFont: '12px sans-serif', font: '12px sans-serif',
      values: (self, splits) => splits.map((value) => (value === null ? '' : number(value))),
    };
  }
  function draw() {
    if (drawn) drawn.destroy();
    const what = describe();
    place.setAttribute('role', 'img');
    place.setAttribute('aria-label', what.label);
    const series = what.series.map((one) => ({
      label: one.name, stroke: ink(one.colour), width: 2, dash: one.dash, spanGaps: true, points: { show: Boolean(one.points), size: 6 },
      value: (self, value) => (value === null ? '–' : number(value)),
    }));
    drawn = new uPlot({
      width: Math.max(200, place.clientWidth), height: 230,
      scales: { x: { time: false }, y: what.log ? { distr: 3 } : { range: (self, low, high) => spread(low, high) } },
      axes: [{ ...axis(what.xTitle), size: 30 }, { ...axis(what.yTitle), size: 58 }],
      series: [{ label: what.xTitle, value: (self, value) => (value === null ? '–' : number(value)) }, ...series],
      legend: { show: Boolean(what.legend), live: false },
    }, [what.x, ...what.series.map((one) => one.values)], place);
  }
  // From 0 where that does not press the line together.
  function spread(low, high) {
    if (low === null) return [0, 1];
    if (low === high) return [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
    const room = (high - low) * 0.05;
    return [low >= 0 && low < high / 2 ? 0 : low - room, high + room];
  }
  let width = 0;
  new ResizeObserver(() => {
    if (!drawn || place.clientWidth === width || !place.clientWidth) return;
    width = place.clientWidth;
    drawn.setSize({ width: Math.max(200, width), height: 230 });
  }).observe(place);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => drawn && draw());
  return draw;
}
