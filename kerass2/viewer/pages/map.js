// A prediction on a map: two layers to swipe between, bands, stretch, spectra.
import { fill, find, get, introduce, make, makeTable, plot, say } from './common.js';

const about = await get('about.json');
introduce(about);
const CUSTOM = 'custom';
const state = { left: null, right: null, bands: [], range: null, split: 0.5, pixel: null };

// --- map ---------------------------------------------------------------------------------------

// One unit is a pixel of level 0; y points down, so latitudes are negative rows.
const corner = (y, x) => L.latLng(-y, x);
const whole = L.latLngBounds(corner(about.height, 0), corner(0, about.width));
const map = L.map('map', {
  crs: L.CRS.Simple, minZoom: -about.levels - 1, maxZoom: 5, attributionControl: false,
  // Neither suits swiping, and who wants no motion gets none.
  zoomAnimation: false, fadeAnimation: false, inertia: false,
  maxBounds: whole.pad(0.6),
});
const Tiles = L.TileLayer.extend({
  getTileUrl({ x, y, z }) {
    const { layer, bands, range, gamma } = this.options.shown;
    const parameters = new URLSearchParams({ bands, low: range.low, spread: range.spread, gamma });
    return `tile/${layer}/${-z}/${y}/${x}?${parameters}`;
  },
});
const panes = { left: map.createPane('left'), right: map.createPane('right') };
const tiles = { left: null, right: null };

function showLayer(side) {
  if (tiles[side]) tiles[side].remove();
  tiles[side] = null;
  const number = state[side];
  const has = number !== null && state.bands.every((band) => about.layers[number].bands.includes(band));
  if (!has || !state.range) return;
  const shown = { layer: number, bands: state.bands.join(), range: state.range, gamma: find('gamma').value };
  tiles[side] = new Tiles('', {
    pane: side, bounds: whole, noWrap: true, tileSize: about.tile, minZoom: map.getMinZoom(), maxZoom: map.getMaxZoom(),
    minNativeZoom: 1 - about.levels, maxNativeZoom: 0, keepBuffer: 1, shown,
  });
  tiles[side].on('tileerror', async ({ tile }) => {
    try {
      const response = await fetch(tile.src);
      if (!response.ok) say((await response.text()).trim());
    } catch {
      say('The viewer does not answer: has it been ended?');
    }
  });
  tiles[side].addTo(map);
}

function clip() {
  const size = map.getSize();
  const [top, bottom] = [L.point(0, 0), size].map((point) => map.containerPointToLayerPoint(point));
  const cut = state.left === null ? top.x : map.containerPointToLayerPoint([size.x * state.split, 0]).x;
  const box = (left, right) =>
    `polygon(${left}px ${top.y}px, ${right}px ${top.y}px, ${right}px ${bottom.y}px, ${left}px ${bottom.y}px)`;
  panes.left.style.clipPath = box(top.x, cut);
  panes.right.style.clipPath = box(cut, bottom.x);
}
map.on('move zoom resize viewreset', clip);

// --- swipe -------------------------------------------------------------------------------------

const handle = find('swipe');
function swipe(split) {
  state.split = Math.min(1, Math.max(0, split));
  handle.style.left = `${100 * state.split}%`;
  handle.setAttribute('aria-valuenow', Math.round(100 * state.split));
  clip();
}
handle.addEventListener('keydown', (event) => {
  const step = event.shiftKey ? 0.1 : 0.02;
  const moves = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -0.1, PageUp: 0.1, Home: -1, End: 1 };
  if (!(event.key in moves)) return;
  event.preventDefault();
  swipe(state.split + moves[event.key]);
});
handle.addEventListener('pointerdown', (event) => {
  handle.setPointerCapture(event.pointerId);
  handle.focus({ focusVisible: false });
  event.preventDefault();
});
handle.addEventListener('pointermove', (event) => {
  if (!handle.hasPointerCapture(event.pointerId)) return;
  const box = find('stage').getBoundingClientRect();
  swipe((event.clientX - box.left) / box.width);
});

// --- what is shown -----------------------------------------------------------------------------

const names = about.bands.map((band) => band.name);
const selects = ['red', 'green', 'blue'].map(find);

function showNames() {
  const told = (number) => {
    const layer = about.layers[number];
    const missing = [...new Set(state.bands)].filter((band) => !layer.bands.includes(band));
    return missing.length ? `${layer.title}: has no ${missing.map((band) => names[band]).join(', ')}` : layer.title;
  };
  find('left-name').hidden = handle.hidden = state.left === null;
  if (state.left !== null) find('left-name').textContent = told(state.left);
  find('right-name').textContent = told(state.right);
}

// The latest request alone may draw.
let asked = 0;
async function refresh({ stretched = false } = {}) {
  const mine = ++asked;
  if (!find('controls').checkValidity()) {
    say('The stretch goes from one percentage to a larger one, from 0 to 100; gamma is from 0.1 to 3.');
    return;
  }
  try {
    if (!stretched || !state.range) {
      const parameters = { bands: state.bands, percentiles: [find('low').value, find('high').value] };
      if (document.querySelector('[name=of]:checked').value === 'view') parameters.window = viewWindow();
      const range = await get('stretch.json', parameters);
      if (mine !== asked) return;
      state.range = range;
      find('range').textContent = `${range.low.map((low) => +low.toPrecision(4)).join(', ')} + ${+range.spread.toPrecision(4)}`;
    }
    say('');
    ['left', 'right'].forEach(showLayer);
    showNames();
  } catch (error) {
    say(error.message);
  }
}

function viewWindow() {
  const seen = map.getBounds();
  const clamp = (value, most) => Math.min(Math.max(Math.floor(value), 0), most - 1);
  const [top, left] = [clamp(-seen.getNorth(), about.height), clamp(seen.getWest(), about.width)];
  const [bottom, right] = [clamp(-seen.getSouth(), about.height), clamp(seen.getEast(), about.width)];
  return [top, left, bottom - top + 1, right - left + 1];
}

function chooseBands(bands) {
  state.bands = bands;
  selects.forEach((select, index) => { select.value = bands[index]; });
  const known = about.combinations.findIndex((one) => one.bands.join() === bands.join());
  find('combination').value = known < 0 ? CUSTOM : known;
  refresh();
}

fill(find('combination'), [...about.combinations.map((one, index) => [index, one.name]), [CUSTOM, 'any three, as below']]);
const titled = about.bands.map((band, index) => [index, band.gsd ? `${band.name} (${band.gsd} m)` : band.name]);
selects.forEach((select) => fill(select, titled));
find('combination').addEventListener('change', ({ target }) => {
  if (target.value === CUSTOM) selects[0].focus();
  else chooseBands(about.combinations[target.value].bands);
});
selects.forEach((select) => select.addEventListener('change', () => chooseBands(selects.map((one) => Number(one.value)))));

const choices = about.layers.map((layer, index) => [index, layer.title]);
for (const side of ['left', 'right']) {
  fill(find(side), choices);
  find(side).addEventListener('change', ({ target }) => {
    state[side] = Number(target.value);
    refresh({ stretched: true });
  });
}
state.right = about.layers.length - 1;
state.left = about.layers.length > 1 ? 0 : null;
find('right').value = state.right;
find('left').value = state.left;
find('layers').hidden = state.left === null;

[find('low').value, find('high').value] = about.stretch;
find('gamma').value = about.gamma;
for (const id of ['low', 'high']) find(id).addEventListener('change', () => refresh());
find('gamma').addEventListener('change', () => refresh({ stretched: true }));
document.querySelectorAll('[name=of]').forEach((radio) => radio.addEventListener('change', () => refresh()));
map.on('moveend', () => {
  if (document.querySelector('[name=of]:checked').value === 'view') refresh();
});
find('controls').addEventListener('submit', (event) => event.preventDefault());

// --- spectra -----------------------------------------------------------------------------------

const LOOKS = {
  input: { colour: '--two', dash: [2, 3] },
  bicubic: { colour: '--three', dash: [7, 4] },
  prediction: { colour: '--one' },
};
let spectrum = null;
// By wavelength where all have one.
const order = about.bands.map((band, index) => index);
const spectral = about.bands.every((band) => band.wavelength);
if (spectral) order.sort((one, other) => about.bands[one].wavelength - about.bands[other].wavelength);

const unit = () => document.querySelector('[name=unit]:checked').value;
const value = (layer, band) => layer[unit()][names[band]];
const drawPlot = plot(find('plot'), () => ({
  label: `Spectrum at row ${spectrum.y}, column ${spectrum.x}; its values stand in the table below`,
  x: order.map((band, index) => (spectral ? about.bands[band].wavelength : index + 1)),
  series: spectrum.layers.map((layer) => ({
    name: layer.name, values: order.map((band) => value(layer, band) ?? null), points: true, ...LOOKS[layer.name],
  })),
  legend: true, xTitle: spectral ? 'wavelength [nm]' : 'band', yTitle: unit() === 'stored' ? 'stored value' : 'reflectance',
}));

function drawSpectrum() {
  const stored = (number) => (Number.isInteger(number) ? String(number) : String(+number.toPrecision(6)));
  const digits = unit() === 'stored' ? stored : (number) => number.toFixed(4);
  const told = (number) => (number === undefined ? '–' : number === null ? 'no data' : digits(number));
  drawPlot();
  find('values').replaceChildren(makeTable({
    caption: unit() === 'stored' ? 'Stored values (DN)' : 'Reflectance',
    columns: ['band', ...spectrum.layers.map((layer) => layer.name)],
    rows: order.map((band) => [names[band], ...spectrum.layers.map((layer) => told(value(layer, band)))]),
  }));
}

let marks = null;
async function pick(y, x) {
  if (!(y >= 0 && y < about.height && x >= 0 && x < about.width)) {
    say(`Row ${y}, column ${x}: rows go from 0 to ${about.height - 1}, columns to ${about.width - 1}.`);
    return;
  }
  if (marks) marks.remove();
  const look = { interactive: false, fill: false, opacity: 1 };
  const box = L.latLngBounds(corner(y + 1, x), corner(y, x + 1));
  marks = L.layerGroup([
    L.circleMarker(box.getCenter(), { ...look, radius: 9, color: '#000', weight: 4 }),
    L.circleMarker(box.getCenter(), { ...look, radius: 9, color: '#fff', weight: 2 }),
    L.rectangle(box, { ...look, color: '#fff', weight: 1 }),
  ]).addTo(map);
  [find('row').value, find('column').value] = [y, x];
  const mine = (state.pixel = [y, x]);
  try {
    const found = await get('pixel.json', { y, x });
    if (mine !== state.pixel) return;
    spectrum = found;
    say('');
  } catch (error) {
    say(error.message);
    return;
  }
  find('where').textContent = `Spectrum at row ${y}, column ${x}`;
  const place = spectrum.position && [
    `${spectrum.crs}: ${spectrum.position.map((part) => +part.toFixed(2)).join(', ')}`,
    spectrum.lonlat && `longitude ${spectrum.lonlat[0].toFixed(6)}°, latitude ${spectrum.lonlat[1].toFixed(6)}°`,
  ].filter(Boolean).join(' · ');
  find('place').textContent = place || 'No georeference.';
  find('spectrum').hidden = false;
  drawSpectrum();
}
map.on('click', ({ latlng }) => pick(Math.floor(-latlng.lat), Math.floor(latlng.lng)));
// The cross stands as long as the map is used by keys, also after a click has focused it.
find('map').addEventListener('keydown', () => find('stage').classList.add('keys'));
for (const name of ['pointerdown', 'blur']) {
  find('map').addEventListener(name, () => find('stage').classList.remove('keys'));
}
find('map').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.target !== find('map')) return;
  const middle = map.getCenter();
  pick(Math.floor(-middle.lat), Math.floor(middle.lng));
});
find('show').addEventListener('click', () => {
  const [y, x] = ['row', 'column'].map((id) => Number(find(id).value));
  pick(y, x).then(() => {
    if (marks && !map.getBounds().contains(corner(y + 0.5, x + 0.5))) map.panTo(corner(y + 0.5, x + 0.5));
  });
});
for (const id of ['row', 'column']) {
  find(id).addEventListener('keydown', (event) => { if (event.key === 'Enter') find('show').click(); });
}
const hasReflectance = about.layers.some((layer) => layer.reflectance);
find('units').hidden = !hasReflectance;
if (hasReflectance) document.querySelector('[name=unit][value=reflectance]').checked = true;
document.querySelectorAll('[name=unit]').forEach((radio) => radio.addEventListener('change', drawSpectrum));

// --- begin -------------------------------------------------------------------------------------

map.fitBounds(whole);
// Real pixels: never blurred, but small images begin no larger than 4 screen pixels each.
if (map.getZoom() > 2) map.setZoom(2);
swipe(0.5);
chooseBands(about.combinations[0].bands);
document.documentElement.dataset.ready = 'true';
