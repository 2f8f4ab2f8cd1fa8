// A data set: patches of a split, page by page, each array in the chosen bands.
import { fill, find, get, introduce, make, say } from './common.js';

const about = await get('about.json');
introduce(about);
const [AUTOMATIC, CUSTOM] = ['automatic', 'custom'];
const state = { split: Math.max(0, about.splits.findIndex((split) => split.count)), page: 0 };
const numPages = () => Math.max(1, Math.ceil(about.splits[state.split].count / about.page));

fill(find('split'), about.splits.map((split, index) => [index, `${split.name} (${split.count})`]), state.split);
fill(find('combination'), [
  [AUTOMATIC, 'what suits each array'], ...about.combinations.map((one, index) => [index, one.name]), [CUSTOM, 'any three'],
]);
const selects = ['red', 'green', 'blue'].map(find);
selects.forEach((select, index) => {
  fill(select, about.bands.map((band, number) => [number, band]), Math.min(index, about.bands.length - 1));
  select.addEventListener('change', () => show());
});

// Names of red, green and blue; null: each array has its own.
function chosenBands() {
  const value = find('combination').value;
  if (value === AUTOMATIC) return null;
  return value === CUSTOM ? selects.map((select) => about.bands[select.value]) : about.combinations[value].bands;
}

function makePatch(patch, bands) {
  const shown = about.arrays.map((array, index) => ({ ...array, index })).filter(
    (array) => bands === null || bands.every((band) => array.bands.includes(band)));
  const query = bands === null ? '' : `?bands=${bands.map((band) => about.bands.indexOf(band))}`;
  const figures = shown.map((array) => {
    const image = make('img', {
      src: `patch/${state.split}/${patch.index}/${array.index}${query}`, alt: `${array.title} of patch ${patch.id}`,
      loading: 'lazy', width: array.shape[1], height: array.shape[0],
    });
    image.addEventListener('error', async () => {
      const response = await fetch(image.src).catch(() => null);
      if (!response) say('The viewer does not answer: has it been ended?');
      else if (!response.ok) say((await response.text()).trim());
    });
    return make('figure', {}, image, make('figcaption', {}, `${array.title}, ${array.gsd} m`));
  });
  const labels = about.labels.map((name) => make('ul', { class: 'labels', 'aria-label': name },
    ...(patch.labels[name].length ? patch.labels[name] : ['no label']).map((label) => make('li', {}, label))));
  return make('article', { class: 'card' }, make('div', { class: 'pictures' }, ...figures), make('h2', {}, patch.id), ...labels);
}

let asked = 0;
async function show() {
  const mine = ++asked;
  state.page = Math.min(Math.max(state.page, 0), numPages() - 1);
  const bands = chosenBands();
  document.querySelectorAll('.custom').forEach((label) => { label.hidden = find('combination').value !== CUSTOM; });
  find('page').value = state.page + 1;
  find('page').max = numPages();
  find('pages').textContent = `of ${numPages()}`;
  find('before').disabled = state.page === 0;
  find('next').disabled = state.page === numPages() - 1;
  try {
    const found = await get('patches.json', { split: state.split, page: state.page });
    if (mine !== asked) return;
    const none = !found.patches.length ? 'No patches in this split.'
      : bands !== null && !about.arrays.some((array) => bands.every((band) => array.bands.includes(band)))
        ? `No array has all of ${bands.join(', ')}.` : '';
    say(none);
    find('patches').replaceChildren(...found.patches.map((patch) => makePatch(patch, bands)));
  } catch (error) {
    if (mine === asked) say(error.message);
  }
}

function turn(by) {
  const before = state.page;
  state.page = Math.min(Math.max(state.page + by, 0), numPages() - 1);
  if (state.page !== before) show();
}
find('before').addEventListener('click', () => turn(-1));
find('next').addEventListener('click', () => turn(1));
find('page').addEventListener('change', ({ target }) => {
  state.page = Math.round(Number(target.value) || 1) - 1;
  show();
});
find('split').addEventListener('change', ({ target }) => {
  Object.assign(state, { split: Number(target.value), page: 0 });
  show();
});
find('combination').addEventListener('change', () => show());
find('controls').addEventListener('submit', (event) => event.preventDefault());
document.addEventListener('keydown', (event) => {
  if (event.target.closest('input, select') || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === 'ArrowLeft') turn(-1);
  if (event.key === 'ArrowRight') turn(1);
});
await show();
document.documentElement.dataset.ready = 'true';
