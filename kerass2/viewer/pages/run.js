// A training: curves that grow while it runs, and the tables of its evaluation.
import { find, get, make, makeTable, plot, say } from './common.js';

const EVERY = 2000; // [ms]
let run = { stamp: '', curves: [] };
const plots = new Map(); // key of a curve -> {card, draw}

const short = (number) => String(+number.toPrecision(4));
function since(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

function showState() {
  const steps = run.step === null ? 'no step yet' : `${run.step}${run.steps ? ` of ${run.steps}` : ''} steps`;
  const news = run.idle === null ? 'no log yet' : `last line ${since(run.idle)} ago`;
  find('state').textContent = run.finished ? `Finished, ${steps}` : `Not finished: ${steps}, ${news}`;
  find('progress').hidden = run.finished || !run.steps || run.step === null;
  find('progress').value = run.steps ? Math.min(1, run.step / run.steps) : 0;
}

function drawCurve(key) {
  const curve = run.curves.find((one) => one.key === key);
  const series = [{ name: curve.title, values: curve.y, colour: '--one', points: curve.points < 30 }];
  if (curve.level !== null) series.push({ name: 'bicubic', values: curve.x.map(() => curve.level), colour: '--two', dash: [7, 4] });
  return {
    label: `${curve.title}, ${curve.points} points, last ${short(curve.last[1])} at step ${curve.last[0]}`,
    x: curve.x, series, log: curve.log, legend: series.length > 1, xTitle: 'step', yTitle: '',
  };
}

function showCurves() {
  const keys = run.curves.map((curve) => curve.key);
  if (keys.join() !== [...plots.keys()].join()) {
    plots.clear();
    find('curves').replaceChildren(...run.curves.map((curve) => {
      const place = make('div', { class: 'plot' });
      plots.set(curve.key, plot(place, () => drawCurve(curve.key)));
      return make('figure', { class: 'card' }, make('h2', {}, curve.title), place);
    }));
  }
  plots.forEach((draw) => draw());
  find('latest-card').hidden = !keys.length;
  find('latest').replaceChildren(makeTable({
    caption: 'Each value at its last step, and its lowest',
    columns: ['value', 'last', 'at step', 'lowest', 'at step'],
    rows: run.curves.map(({ title, last, lowest }) => [title, short(last[1]), String(last[0]), short(lowest[1]), String(lowest[0])]),
  }));
}

function showEvaluation() {
  find('evaluation-card').hidden = !run.tables.length;
  const notes = run.tables.flatMap((table) => table.notes).map((note) => make('p', { class: 'quiet' }, note));
  const terms = Object.entries(run.definitions).flatMap(([name, text]) => [make('dt', {}, name), make('dd', {}, text)]);
  const definitions = terms.length
    ? [make('details', {}, make('summary', {}, 'Definitions'), make('dl', { class: 'facts' }, ...terms))] : [];
  find('evaluation').replaceChildren(...run.tables.map(makeTable), ...notes, ...definitions);
}

async function update() {
  const found = await get('run.json', { stamp: run.stamp });
  const isNew = found.stamp !== run.stamp;
  run = { ...run, ...found };
  if (isNew) {
    document.title = `${run.title} · kerass2`;
    find('title').textContent = run.title;
    find('facts').replaceChildren(...run.facts.flatMap(([name, text]) => [make('dt', {}, name), make('dd', {}, text)]));
    showCurves();
    showEvaluation();
  }
  say(run.problems.join('\n'));
  showState();
}

async function follow() {
  try {
    if (!document.hidden) await update();
  } catch (error) {
    say(error.message);
  }
  document.documentElement.dataset.ready = 'true';
  setTimeout(follow, EVERY);
}
follow();
