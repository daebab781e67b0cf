/* Long work off the page's thread. The worker is made of the shared parts' sources: pages from file:// may load no file
   into one. Where workers are refused, the same tasks run here, in slices. */
'use strict';
{
/** In the worker: [id, task, args] in; [id, what, value] out. */
const serve = (HB) => {
	const scope = {};
	self.onmessage = ({ data: [id, task, args] }) => {
		const say = (what) => (value) => postMessage([id, what, value]);
		HB.tasks[task](scope, args, say('news')).then(say('done'), ({ status, message }) => say('failed')({ status, message }));
	};
};
const source = () => `'use strict';const HB={};${[...HB.shared, serve].map((part) => `(${part})(HB);`).join('\n')}`;
const urls = []; // by the number of shared parts that are here

class Work {
	calls = [];
	scope = { pause: () => this.pause() }; // used here only

	constructor() {
		try {
			const url = (urls[HB.shared.length] ??= URL.createObjectURL(new Blob([source()], { type: 'text/javascript' })));
			this.worker = new Worker(HB.trusted(url));
			this.worker.onmessage = ({ data: [id, what, value] }) => this.calls[id][what](value);
			this.worker.onerror = (event) => {
				// A refusal comes before any answer.
				event.preventDefault();
				this.worker = null;
				for (const call of this.calls) this.here(call);
			};
		} catch {} // refused
	}

	/** task: one of HB.tasks. onNews hears what it tells meanwhile. */
	run(task, args, onNews = () => {}) {
		return new Promise((done, failed) => {
			const call = { task, args, done, failed, news: onNews };
			const id = this.calls.push(call) - 1;
			if (this.worker) this.worker.postMessage([id, task, args]);
			else this.here(call);
		});
	}

	here({ task, args, done, failed, news }) {
		const open = (act) => (value) => this.isClosed || act(value);
		HB.tasks[task](this.scope, args, open(news)).then(open(done), open(failed));
	}

	/** Between two slices. A task that is given up ends here. */
	async pause() {
		await HB.breath();
		if (this.isClosed) throw new Error('given up');
	}

	close() {
		this.isClosed = true;
		this.worker?.terminate();
	}
}

Object.assign(HB, { Work, workerSource: source });
}
