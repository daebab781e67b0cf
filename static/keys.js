/* Keys: one table, from which both what they do and the list of them come. */
'use strict';
{
const { h } = HB;
const NAMES = { Escape: 'Esc', ArrowLeft: '←', ArrowRight: '→', ArrowUp: '↑', ArrowDown: '↓', ' ': 'Space' };

/** Rows [keys, words, where, run(event)]. Without `run`, the part that put it here listens by itself. */
const keys = [];

/** Does what a key means in one of these places; whether it means anything. */
keys.run = (places, event) => {
	const row = keys.find(([names, , where, run]) => run && places.includes(where) && names.includes(event.key));
	row?.[3](event);
	return Boolean(row);
};

/** The list, by place. */
keys.list = () =>
	[...new Set(keys.map(([, , where]) => where))].map((place) => {
		const rows = keys.filter(([, , where]) => where === place);
		return h('section', null, h('h3', null, place), h('dl', null, rows.map(([names, words]) => [h('dt', null, names.map((name) => h('kbd', null, NAMES[name] ?? name))), h('dd', null, words)]).flat()));
	});

HB.keys = keys;
}
